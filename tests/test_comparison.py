"""The statistics of a study and its tables: by hand, against textbooks, and as their readers parse them."""

from __future__ import annotations

import base64
import csv
import io
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import score
from genview.report import Design, Entry, Row, write_study, write_tables
from genview.report.comparison import (
    Score,
    by_measure,
    compared,
    difference,
    half_width,
    pooled,
    scores,
    seeds_for,
)
from genview.report.forest import forest
from genview.report.study_page import study_page
from genview.report.tables import cells, enough, latex, markdown
from genview.store import RunFolder

VALUES = {"base": (0.30, 0.32, 0.31), "more": (0.31, 0.34, 0.34), "odd & 100%_$x|y": (0.29,)}


def design(root: Path = Path()) -> Design:
    """One axis whose second variant gains 1, 2 and 3 points, and whose third has one of three seeds."""
    runs = [(name, seed) for name in VALUES for seed in range(3)]
    entries = [Entry((name,), seed, RunFolder(root / f"{number}")) for number, (name, seed) in enumerate(runs)]
    return Design(("views",), tuple(entries), 0, "base")


def rows() -> list[Row]:
    found = {
        entry: {"linear/top1": Score(VALUES[entry.variants[0]][entry.seed], "linear-1")}
        if entry.seed < len(VALUES[entry.variants[0]])
        else {}
        for entry in design().entries
    }
    return compared(design(), found)


def test_an_example_by_hand() -> None:
    """Gains of 1, 2 and 3 points: mean 2, deviation 1, and t(2; 0.975) = 4.302653 over √3 makes 2.484138."""
    base, more, odd = rows()
    assert base.difference is None
    assert [base.mean, base.deviation, base.count] == pytest.approx([0.31, 0.01, 3])
    assert [more.mean, more.deviation] == pytest.approx([0.33, 0.0173205])
    assert more.difference is not None
    assert [more.difference.mean, more.difference.half] == pytest.approx([0.02, 0.02484138])
    assert more.difference.interval == pytest.approx((-0.00484138, 0.04484138))
    assert odd.difference is not None
    assert (odd.count, odd.planned, odd.deviation) == (1, 3, None)
    assert odd.difference.mean == pytest.approx(-0.01)
    assert odd.difference.half is None, "one seed has no interval"


SHARES = st.floats(0, 1)


QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Of Student's t at 0.975, as printed in textbooks."""


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=9))
def test_the_interval_is_that_of_textbooks(pairs: list[tuple[float, float]]) -> None:
    gaps = [ours - theirs for ours, theirs in pairs]
    found = difference([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    half = QUANTILES[len(gaps) - 1] * statistics.stdev(gaps) / len(gaps) ** 0.5
    assert found.mean == pytest.approx(statistics.fmean(gaps), abs=1e-12)
    assert found.count == len(gaps)
    assert found.half == pytest.approx(half, rel=2e-4, abs=1e-12)


def test_deviations_are_pooled_by_their_degrees_of_freedom() -> None:
    gaps = ([0.0, 0.02], [0.0, 0.01, 0.02, 0.03], [0.5])
    found = [Row(("x",), "knn", 4, 4, 0.5, None, difference(row, [0.0] * len(row))) for row in gaps]
    squares = (1 * statistics.variance(gaps[0]) + 3 * statistics.variance(gaps[1])) / 4
    assert pooled([*found, rows()[0]]) == pytest.approx(squares**0.5)
    assert pooled(found[2:]) is None
    assert enough(found[2:]) == "", "one seed tells nothing of seeds"


@pytest.mark.parametrize(("deviation", "seeds"), [(0.0, 2), (0.004, 3), (0.01, 7), (0.02, 18), (9.0, 1000)])
def test_seeds_for_an_interval(deviation: float, seeds: int) -> None:
    """As many as its width asks for, and no fewer: t(n − 1; 0.975) s ≤ 0.01 √n."""
    assert seeds_for(deviation, 0.01) == seeds
    if 2 < seeds < 1000:
        assert half_width(deviation, seeds) <= 0.01 < half_width(deviation, seeds - 1)


@given(st.lists(SHARES, min_size=2, max_size=5), st.floats(-0.5, 0.5), st.randoms())
def test_a_shift_of_all_is_the_difference_whatever_the_order(
    values: list[float], shift: float, chance: object
) -> None:
    pairs = [(value + shift, value) for value in values]
    chance.shuffle(pairs)  # type: ignore[attr-defined]
    found = difference(*zip(*pairs, strict=True))
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.half == pytest.approx(0, abs=1e-8)


def test_pairs_are_of_equal_seed_and_equal_other_axes() -> None:
    """Swapping two seeds of the reference changes the deviation of the differences, and so the interval."""
    axes = ("method", "views")
    values = {
        ("a", "base"): [0.1, 0.2],
        ("a", "new"): [0.2, 0.4],
        ("b", "base"): [0.5, 0.6],
        ("b", "new"): [0.5, 0.7],
    }
    found = {
        Entry(variants, seed, RunFolder(Path())): {"knn/top1@k=5": Score(value)}
        for variants, cell in values.items()
        for seed, value in enumerate(cell)
    }
    new = {row.variants: row.difference for row in compared(Design(axes, tuple(found), 1, "base"), found)}
    assert new["a", "base"] is new["b", "base"] is None
    assert new["a", "new"] is not None
    assert new["b", "new"] is not None
    assert [new["a", "new"].mean, new["b", "new"].mean] == pytest.approx([0.15, 0.05])
    assert new["a", "new"].half == pytest.approx(12.7062047 * 0.0707107 / np.sqrt(2))


def test_scores_are_the_last_ones_and_the_best_of_the_online_ones(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for value in (0.5, 0.4):
        run.measure("online/linear/top1", value, 3, "online-1")
    run.measure("train/loss", 1.0, 3)
    score(run, {"knn/top1@k=5": 0.6})
    score(run, {"knn/top1@k=5": 0.7}, "best")
    assert scores(run) == {}, "a training that goes on is not compared with those that are through"
    run.backbone.write_bytes(b"")
    assert scores(run) == {
        "knn/top1@k=5": (0.6, "knn-1"),
        "knn/top1@k=5, best": (0.7, "knn-1"),
        "online/linear/top1, last": (0.4, "online-1"),
        "online/linear/top1, best": (0.5, "online-1"),
    }


def test_scores_by_two_protocols_are_not_mixed() -> None:
    """As where the protocol's version rose between two runs: each has a table, and no difference crosses them."""
    runs = [Entry((name,), seed, RunFolder(Path())) for name in ("base", "more") for seed in (0, 1)]
    versions = ("knn-1", "knn-2", "knn-1", "knn-1")
    found = {run: {"knn/top1@k=5": Score(0.1 * n, versions[n])} for n, run in enumerate(runs)}
    old, new = by_measure(compared(Design(("views",), tuple(runs), 0, "base"), found))
    assert [row.protocol for row in (*old, *new)] == ["knn-1", "knn-1", "knn-2", "knn-2"]
    assert [(row.count, row.mean) for row in old] == [(1, 0), (2, pytest.approx(0.25))]
    assert old[1].difference == difference([0.2], [0.0])
    assert [(row.count, row.mean) for row in new] == [(1, pytest.approx(0.1)), (0, None)]
    assert new[1].difference is None


def test_cells_have_one_decimal_and_differences_a_sign() -> None:
    base, more, odd = map(cells, rows())
    assert base == ["3/3", "31.0 ± 1.0", "", ""]
    assert more == ["3/3", "33.0 ± 1.7", "+2.0", "[−0.5, +4.5]"]
    assert odd == ["1/3", "29.0", "−1.0", ""]
    assert cells(Row(("x",), "linear/top1", 0, 3, None, None, None)) == ["0/3", "", "", ""]


def test_markdown_by_hand() -> None:
    lines = markdown(design(), rows(), "my_study").splitlines()
    assert lines[0] == r"# my\_study"
    assert lines[4:] == [
        "## linear/top1 (protocol linear-1)",
        "",
        "Differences deviate by 1.0 points from seed to seed; for an interval of ±1 point, 7 seeds.",
        "",
        "| views | seeds | mean ± deviation | difference | 95% interval |",
        "| --- | --- | --- | --- | --- |",
        "| base | 3/3 | 31.0 ± 1.0 |  |  |",
        "| more | 3/3 | 33.0 ± 1.7 | +2.0 | [−0.5, +4.5] |",
        r"| odd & 100%\_$x\|y | 1/3 | 29.0 | −1.0 |  |",
    ]


def test_latex_by_hand() -> None:
    lines = latex(design(), rows()).splitlines()
    assert lines[3:] == [
        r"\begin{tabular}{lrrrr}",
        r"\hline",
        r"views & seeds & mean $\pm$ deviation & difference & 95\% interval \\",
        r"\hline",
        r"base & 3/3 & $31.0 \pm 1.0$ &  &  \\",
        r"more & 3/3 & $33.0 \pm 1.7$ & $+2.0$ & $[-0.5, +4.5]$ \\",
        r"odd \& 100\%\_\$x\textbar{}y & 1/3 & $29.0$ & $-1.0$ &  \\",
        r"\hline",
        r"\multicolumn{5}{l}{Protocol linear-1} \\",
        r"\end{tabular}",
    ]
    odd = [Row(("x",), "linear_augmented/top1", 1, 1, 0.5, None, None, "linear_augmented-1")]
    assert r"{Protocol linear\_augmented-1} \\" in latex(design(), odd)


def test_latex_takes_no_name_for_an_option_of_the_row_before() -> None:
    """A row ends in two backslashes, which would take a star or a bracket that comes next for their own."""
    found = [Row((name, "[x]"), "knn", 1, 1, 0.5, None, None) for name in ("[a]", "*", "<b>")]
    lines = latex(Design(("one", "other"), (), 0, "[a]"), found).splitlines()
    assert [line.partition(" & ")[0] for line in lines if "50.0" in line] == [
        "{}[a]",
        "{}*",
        r"\textless{}b\textgreater{}",
    ]
    assert sum(r" & [x] & 1/1 & $50.0$ &  &  \\" in line for line in lines) == 3, "inside a row there is no danger"


def test_a_score_whose_protocol_was_not_recorded_names_none() -> None:
    row = Row(("x",), "online/knn/top1@k=20, last", 1, 1, 0.5, None, None)
    assert row.title == row.measure
    assert "rotocol" not in markdown(design(), [row], "study") + latex(design(), [row])


def test_files_are_written_from_run_folders(tmp_path: Path) -> None:
    plan = design(tmp_path / "runs")
    for entry in plan.entries:
        entry.run.root.mkdir(parents=True)
        for value in VALUES[entry.variants[0]][entry.seed : entry.seed + 1]:
            score(entry.run, {"linear/top1": value})
            entry.run.backbone.write_bytes(b"")
    write_study(plan, tmp_path)
    results = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(results) == 7
    assert list(results[3].items()) == [
        ("views", "more"),
        ("seed", "0"),
        ("measure", "linear/top1"),
        ("value", "0.31"),
        ("protocol", "linear-1"),
    ], "the protocol is last, where files without it end"
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["views"] for row in table] == list(VALUES)
    assert [list(row.items())[-1] for row in table] == [("protocol", "linear-1")] * 3
    assert float(table[1]["low"]) == pytest.approx(-0.00484138)
    assert (table[2]["pairs"], table[2]["low"], table[0]["difference"]) == ("1", "", "")
    assert (tmp_path / "table.tex").read_text() == latex(plan, rows())
    assert (tmp_path / "report.html").is_file()
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 10


def test_a_table_of_nothing_says_so_and_has_no_figure(tmp_path: Path) -> None:
    plan = design(tmp_path / "runs")
    assert write_tables(plan, tmp_path) == write_study(plan, tmp_path) == []
    assert not (tmp_path / "figure.png").exists()
    assert forest(plan, rows()[:1]) is None, "the reference alone has nothing to be compared with"


def test_a_figure_of_an_earlier_state_goes_where_there_is_none_to_draw(tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(b"of runs that are gone")
    write_study(design(tmp_path / "runs"), tmp_path)
    assert not (tmp_path / "figure.png").exists()


def test_the_page_tells_the_state_of_each_run_and_takes_names_for_words(tmp_path: Path) -> None:
    plan = Design(
        ("views",), tuple(Entry(("<b>",), seed, RunFolder(tmp_path / f"{seed}")) for seed in range(4)), 0, "<b>"
    )
    finished, failed, begun, _ = (entry.run for entry in plan.entries)
    for path in (finished.finished, finished.page, begun.checkpoints / "last.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    failed.root.mkdir()
    failed.failure.write_text("Traceback\nValueError: <i>")
    page = study_page(plan, [], None, tmp_path)
    states = re.findall(r'<th scope="row">&lt;b&gt;</th><td>\d</td><td>(.*?)</td>', page)
    assert states == ['<a href="0/report.html">finished</a>', "failed: ValueError: &lt;i&gt;", "begun", "not begun"]
    assert "1 of 4 runs are finished" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_has_the_numbers_of_the_table_and_the_figure() -> None:
    page = study_page(design(), rows(), b"picture", Path())
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in page
    assert "<td>33.0 ± 1.7</td><td>+2.0</td><td>[−0.5, +4.5]</td>" in page
    assert re.findall(r"<h2[^>]*>([^<]*)", page) == ["Differences", "linear/top1 (protocol linear-1)", "Runs"]
