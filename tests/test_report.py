"""The page of a run: all of its sections whatever is there, nothing from elsewhere, and no harm from names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import score
from genview.errors import UserError
from genview.report import Result, results, write_page
from genview.report.words import label, outcome, points
from genview.store import RunFolder
from made_runs import (
    HOSTILE,
    Digits,
    Page,
    add_analysis,
    add_measures,
    add_portrait,
    add_views,
    add_weighted,
    copied,
    shown_run,
)

SECTIONS = [
    "results",
    "space",
    "confusion",
    "views",
    "foreground",
    "pairs",
    "quality",
    "histograms",
    "curves",
    "quarantine",
    "experiment",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with its page, to be looked at only."""
    return shown_run(tmp_path_factory.mktemp("report") / "my & run")


@pytest.fixture(scope="module")
def page(made: RunFolder) -> Page:
    return Page(made.page)


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    return copied(made, tmp_path)


def test_results_are_of_the_last_backbone_beside_the_baseline_and_the_best(run: RunFolder) -> None:
    score(run, {"linear/top1": 0.75}, "best")
    score(run, {"knn/top1@k=20": 0.671, "linear/top1": 0.5})
    knn, linear = results(run)
    assert knn == Result("knn/top1@k=20", 0.671, 0.631, None, "knn-1")
    assert linear == Result("linear/top1", 0.5, 0.5125, 0.75, "linear-1")
    assert knn.difference == pytest.approx(0.04)
    assert linear.difference == pytest.approx(-0.0125)


def test_results_without_baseline(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert results(run) == []
    run.measure("linear/top1", 0.4, 3)
    assert results(run) == [], "measures are not results: a folder of an earlier version has those alone"
    score(run, {"finetune/top1@1%": 0.5})
    assert results(run) == [Result("finetune/top1@1%", 0.5, None, None, "finetune-1")]
    assert results(run)[0].difference is None


def test_words() -> None:
    assert label("knn/top1@k=20") == "kNN top-1 (k = 20)"
    assert label("linear/top1") == "linear probe top-1"
    assert [points(d) for d in (0.0404, -0.0126, 0.0)] == ["+4.0", "−1.3", "+0.0"]
    found = [Result("knn/top1@k=20", 0.671, 0.631), Result("linear/top1", 0.5, 0.512)]
    assert outcome(found, "generated views") == (
        "With generated views the frozen backbone reaches 67.1% in kNN top-1 (k = 20) and 50.0% in "
        "linear probe top-1: +4.0 and −1.2 points against the same budget without."
    )
    more = [*found[:1], Result("knn/top1@k=200", 0.1), *found[1:], Result("transfer/dtd", 0.3)]
    assert "67.1% in kNN top-1 (k = 20) and 50.0% in linear probe top-1 and 30.0% in transfer dtd" in outcome(
        more, ""
    )
    assert "points" not in outcome([Result("linear/top1", 0.5, None)], "generated views")
    assert outcome([], "") == "The backbone of this run has not been scored yet."


def test_whole_page(page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "Nothing here yet" not in page.source
    assert [row["href"] for row in page.all("a")] == [f"#{name}" for name in SECTIONS]
    assert page.source.count('class="reading"') == len(SECTIONS)
    assert len(page.all("svg")) == 10
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    text = page.texts["results"]
    for number in ("67.1%", "63.1%", "+4.0", "50.0%", "51.2%", "−1.2", "knn-1", "linear-1", "75.0%"):
        assert number in text
    assert "with generated views and quality weights" in text
    assert "images: root: <photos> & more" in " ".join(page.texts["experiment"].split())
    assert "0.1235" in page.texts["foreground"]
    assert page.source.count("<title>my &amp; run · genview</title>") == 1
    assert len(page.source) < 1_000_000


def test_page_needs_nothing_from_elsewhere(page: Page) -> None:
    assert not re.search(r"https?:|xlink:|@import|url\((?!#)", page.source)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    policy = next(str(meta["content"]) for meta in page.all("meta") if "http-equiv" in meta)
    own = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(own) == 2
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert policy.split("; ") == [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'",
    ]
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")


def test_strings_from_data_are_escaped(page: Page) -> None:
    assert HOSTILE not in page.source
    assert len(page.scripts) == 4
    assert "<b>border" not in page.source
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in page.texts["quarantine"]
    assert HOSTILE in page.texts["views"]
    assert {"title": HOSTILE, "class": "tile"} in page.all("figure")


def test_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page.source)
    assert set(used) <= set(ids)


@pytest.mark.parametrize("done", range(6))
def test_half_done_runs_give_a_page_that_names_the_missing_stage(tmp_path: Path, done: int) -> None:
    run = RunFolder(tmp_path / "run")
    stages = (
        add_analysis, add_views, add_weighted, lambda run: add_measures(run, knn=0.5, linear=0.5), add_portrait
    )  # fmt: skip
    for stage in stages[:done]:
        stage(run)
    write_page(run)
    page = Page(run.page)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    verbs = (
        ("foreground", "analyse"), ("views", "generate"), ("pairs", "pretrain"), ("results", "evaluate"),
        ("space", "evaluate"),
    )  # fmt: skip
    for number, (section, verb) in enumerate(verbs):
        assert (f"genview {verb} makes this" in page.texts[section]) == (number >= done)
    assert page.texts["histograms"].count("Nothing here yet") == max(0, 3 - done)
    assert "genview run makes this" in page.texts["experiment"]
    assert "None so far" in page.texts["quarantine"]
    assert ("No baseline" in page.texts["results"]) == (done >= 4)


def test_baseline_alone_is_not_called_views(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    score(run, {"linear/top1": 0.5})
    write_page(run)
    assert "Without generated views or quality weights the frozen backbone" in run.page.read_text()


def test_a_run_of_a_study_is_named_by_its_variants_and_asks_for_no_baseline(tmp_path: Path) -> None:
    run, alone = (RunFolder(tmp_path / "runs" / name) for name in ("simsiam/a-b/seed-0", "mine"))
    for one in (run, alone):
        score(one, {"linear/top1": 0.5})
    page = write_page(run).read_text()
    assert "<h1>seed-0</h1>" in page
    assert "No baseline" in page
    (tmp_path / "study.yaml").touch()
    page = write_page(run).read_text()
    assert "<h1>simsiam / a-b / seed-0</h1>" in page
    assert "<title>simsiam / a-b / seed-0 · genview</title>" in page
    assert "No baseline" not in page
    assert "The page of the study compares this run" in page
    page = write_page(alone).read_text()
    assert "<h1>mine</h1>" in page, "a study.yaml may lie beside runs of its own"
    assert "No baseline" in page


def test_quarantine_is_counted_and_cut_at_fifty(run: RunFolder) -> None:
    with run.quarantine_file.open("a") as file:
        file.write('{"key": "cut sho')
    run.quarantine("\udc80.png", "a name that is no Unicode")
    write_page(run)
    page = Page(run.page)
    assert "61 images, of which the first 50" in page.texts["quarantine"], "the line cut short swallows no other"
    assert "bad/49.png" in page.texts["quarantine"]
    assert "bad/50.png" not in page.texts["quarantine"]


def test_odd_names_are_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.quarantine("\udc80.png", "a name that is no Unicode")
    write_page(run)
    assert "?.png" in Page(run.page).texts["quarantine"]


@pytest.mark.parametrize(
    "name",
    [
        "analysis/examples.npz",
        "pairs/pictured.parquet",
        "pairs/latest.parquet",
        "evaluation/portrait.parquet",
        "evaluation/predictions.parquet",
        "views/part-00000.parquet",
        "views/plan/plan.json",
    ],
)
def test_damaged_files_are_named(run: RunFolder, name: str) -> None:
    (run.root / name).parent.mkdir(exist_ok=True)
    (run.root / name).write_bytes(b"not what it should be")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        write_page(run)


def test_pickled_arrays_are_refused(run: RunFolder) -> None:
    np.savez(run.analysis / "examples.npz", keys=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=re.escape("examples.npz is damaged")):
        write_page(run)


def test_equal_runs_give_equal_pages(run: RunFolder) -> None:
    first = write_page(run, Digits()).read_bytes()
    assert write_page(run, Digits()).read_bytes() == first
    assert json.loads((run.analysis / "summary.json").read_text())["threshold"] == 0.12345678
