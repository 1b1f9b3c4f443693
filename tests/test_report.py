from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import score
from genview.errors import UserError
from genview.images.thumbnail import thumbnail
from genview.noise import UNKNOWN
from genview.report import Result, gallery, results, write_page
from genview.report.by_level import grouped
from genview.report.collect import collect, series, spread, table
from genview.report.confusion import confusion, counted
from genview.report.pairs import Gathered, gather
from genview.report.words import label, outcome, points
from genview.store import Measure, RunFolder, read_table, write_json, write_table
from made_runs import (
    COUNT,
    HOSTILE,
    SCORES,
    SKEWED,
    Digits,
    Page,
    add_analysis,
    add_measures,
    add_portrait,
    add_quality,
    add_views,
    add_weighted,
    digits,
    made_run,
    of_pairs,
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
    run = made_run(tmp_path_factory.mktemp("report") / "my & run")
    score(run, {"linear/top1": 0.75}, "best")
    score(run, {"knn/top1@k=20": 0.671, "linear/top1": 0.5})
    write_page(run, Digits())
    return run


@pytest.fixture(scope="module")
def page(made: RunFolder) -> Page:
    return Page(made.page)


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    shutil.copytree(made.root, tmp_path / made.root.name)
    return RunFolder(tmp_path / made.root.name)


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


def test_views_stand_beside_their_originals_by_level(page: Page) -> None:
    images = {str(image["alt"]): str(image["src"]) for image in page.all("img")}
    levels = [int(level) for level in re.findall(r"<h3>Level (\d+)</h3>", page.source)]
    assert levels == [0, 300]
    assert sum(alt.endswith("at level 300") for alt in images) == 8
    assert sum(alt.endswith("at level 0") for alt in images) == 8
    assert pixels(images["View of digits/019.png at level 300"])[0, 0].tolist() == [190, 0, 0]
    np.testing.assert_array_equal(pixels(images["Original digits/019.png"]), digits()[19])
    assert "similarity to the source: 0.75 on average" in page.texts["views"]
    assert "distance between draws: 0.25 on average" in page.texts["views"]
    assert page.texts["views"].count("on average") == 2, "nothing is known of the other level"
    assert "nan" not in page.texts["views"]


def pixels(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_unreadable_originals_and_views_are_said_to_be_missing(run: RunFolder) -> None:
    (run.analysis / "examples.npz").unlink()
    write_page(run, Digits())
    assert "Original digits/003.png: not at hand" in Page(run.page).texts["views"]
    (run.views / "part-00000.tar").unlink()
    write_page(run, Digits())
    assert "View of digits/019.png at level 300: not at hand" in Page(run.page).texts["views"]


def test_originals_come_from_the_analysis_without_a_source(run: RunFolder) -> None:
    write_page(run)
    assert "not at hand" not in Page(run.page).texts["views"]
    examples = run.analysis / "examples.npz"
    kept = {name: values[13:15] for name, values in np.load(examples).items()}
    np.savez(examples, **kept)
    write_page(run)
    alts = [str(image["alt"]) for image in Page(run.page).all("img")]
    originals = [alt for alt in alts if alt.startswith("Original")]
    assert originals == ["Original digits/013.png", "Original digits/014.png"]


def test_highest_and_lowest_weights_are_chosen(made: RunFolder, page: Page) -> None:
    pairs = read_table(made.pairs / "pictured.parquet")
    high, low = gallery.extremes(pairs)
    assert pairs["weight"][high] == pytest.approx([1.95, 1.85, 1.75, 1.65, 1.55, 1.45, 1.35, 1.25])
    assert pairs["weight"][low] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75])
    section = page.texts["pairs"]
    weights = [float(found) for found in re.findall(r"weight ([\d.]+) ·", section)]
    assert weights == pytest.approx(pairs["weight"][high + low].tolist())


def test_few_pairs_are_never_shown_twice_and_nan_never() -> None:
    assert gallery.extremes({"weight": np.array([1.0, np.nan, 3.0, 2.0])}) == ([2, 3], [0])
    assert gallery.extremes({"weight": np.array([1.0])}) == ([0], [])


def test_originals_among_pairs_have_no_level(made: RunFolder, page: Page) -> None:
    pairs = read_table(made.pairs / "pictured.parquet")
    high, low = gallery.extremes(pairs)
    expected = sum(int(pairs["level"][i]) == -1 for i in high + low)
    assert page.texts["pairs"].count("not generated") == expected == 1


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


def test_quality_is_shown_for_each_level(page: Page) -> None:
    assert "300 pairs seen in training" in page.texts["histograms"]
    assert "The latest 300 of the pairs that were looked at, from step 1 to 300." in page.texts["quality"]
    drawn = [label for label in page.source.split('aria-label="')[1:] if " by level. " in label]
    assert [label.split(" by level")[0] for label in drawn] == ["weight", "foreground", "background"]
    # Of the weights, (i mod 100) / 100 in the order of i, a level's are a third each: it is i // 100 · 100 − 1.
    assert "weight by level. none: median 0.495, 100 pairs; 99: median 0.495, 100 pairs; 199:" in drawn[0]
    assert "foreground by level. none: median -1.000" in drawn[1]


def test_many_levels_are_put_together_and_originals_stay_apart() -> None:
    level = np.concatenate([np.full(50, -1), np.arange(500)])
    groups = grouped({"level": level, "weight": level / 100})
    assert list(groups) == ["none", *(f"{low}–{low + 99}" for low in range(0, 500, 100))]
    assert [len(rows["weight"]) for rows in groups.values()] == [50, *[100] * 5]
    assert float(groups["300–399"]["weight"].max()) == pytest.approx(3.99)


def test_levels_are_counted(page: Page) -> None:
    assert "Views by level: 12 at level 0, 8 at level 300" in page.source
    ticks = re.findall(r"<text[^>]*>(\d+)</text>", page.source[page.source.index("Views by level") :])
    assert ticks[:2] == ["0", "300"]


def test_many_levels_give_a_few_rows_and_a_histogram(run: RunFolder) -> None:
    part = run.views / "part-00000.parquet"
    columns = table(run.views, ["key", "draw", "status", "shard", "offset", "length", "score", "diversity"])
    assert columns is not None
    write_table(part, {**columns, "level": np.arange(COUNT) * 50})
    write_page(run, Digits())
    source = run.page.read_text()
    levels = [int(level) for level in re.findall(r"<h3>Level (\d+)</h3>", source)]
    assert (len(levels), levels[0], levels[-1]) == (8, 0, 950)
    assert "8 of 20 levels are shown" in source
    assert "Histogram of levels from 0 to 950" in source


def test_series_sorts_drops_nan_and_averages_neighbours() -> None:
    values = ((2.0, 20), (float("nan"), 30), (1.0, 10))
    short = [Measure("train/loss", value, step) for value, step in values]
    found = series([*short, Measure("train/rate", 9.0, 5)], "train/loss")
    assert (found.steps.tolist(), found.values.tolist()) == ([10, 20], [1, 2])
    found = series([Measure("a", float(step % 2), step) for step in range(600)], "a")
    assert len(found.steps) == 300
    np.testing.assert_allclose(found.steps, np.arange(300) * 2 + 0.5)
    np.testing.assert_allclose(found.values, 0.5)
    assert series([], "a").steps.size == 0


def test_tables_are_sampled_from_first_to_last_part(tmp_path: Path) -> None:
    for i in range(120):
        write_table(tmp_path / f"part-{i:05d}.parquet", {"key": [str(i)], "ratio": np.array([float(i)])})
    found = table(tmp_path, ["ratio"])
    assert found is not None
    assert list(found) == ["ratio"]
    assert len(found["ratio"]) == 50
    assert found["ratio"][[0, -1]].tolist() == [0, 119]
    assert np.diff(found["ratio"]).tolist().count(1) < 40
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread([], 5) == []


def test_heat_is_orange_above_the_threshold_and_blue_below() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    scores = np.concatenate([np.full((4, 2), -1.0), np.full((4, 2), 1.0)], axis=1)
    laid = gallery.heat(grey, scores).astype(int)
    assert laid[64, 5, 2] > laid[64, 5, 0] + 50
    assert laid[64, -5, 0] > laid[64, -5, 2] + 50
    np.testing.assert_array_equal(gallery.heat(grey, np.zeros((4, 4))), grey)


def test_cut_out_keeps_the_mask_and_darkens_the_rest() -> None:
    image = np.full((128, 128, 3), 200, np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    cut = gallery.cut_out(image, mask)
    assert cut[64, 64].tolist() == [200, 200, 200]
    assert cut[5, 5].tolist() == [60, 60, 60]
    assert cut[33, 64].tolist() == gallery.FOREGROUND.tolist()
    assert (cut == image).all(axis=2).sum() == 60 * 60


def test_thumbnails_are_small_squares() -> None:
    wide = Image.new("RGB", (400, 200), (0, 200, 0))
    assert pixels(gallery.data_uri(thumbnail(wide, 128))).shape == (128, 128, 3)
    assert gallery.data_uri(thumbnail(wide, 128)).startswith("data:image/jpeg;base64,")
    tiny = gallery.data_uri(thumbnail(Image.fromarray(digits()[5]), 128))
    assert tiny.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(pixels(tiny), digits()[5])


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


def test_the_lowest_the_median_and_the_highest_score_of_a_level_are_shown(run: RunFolder) -> None:
    write_page(run, Digits())
    source = run.page.read_text()
    shown = re.findall(
        r'alt="View of [^"]*?(?:digits/)?(\d{3})?\.png at level 0"[^>]*>.*?<figcaption>(\w+) sim', source
    )
    assert [(int(name or 0), place) for name, place in shown] == [
        (1, "lowest"),
        (9, "lowest"),
        (7, "lowest"),
        (6, "median"),
        (11, "median"),
        (0, "highest"),
        (8, "highest"),
        (3, "highest"),
    ]


@pytest.mark.parametrize(
    ("count", "places"),
    [(1, "m"), (2, "lh"), (3, "lmh"), (4, "lmmh"), (5, "llmhh"), (8, "lllmmhhh"), (9, "lllmmhhh")],
)
def test_no_view_is_shown_twice(count: int, places: str) -> None:
    chosen = gallery.ranked(list(range(count)))
    assert "".join(place[0] for _, place in chosen) == places
    rows = [row for row, _ in chosen]
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (0, count - 1)


def test_a_level_that_is_not_known_is_called_so(run: RunFolder) -> None:
    part = run.views / "part-00000.parquet"
    write_table(part, {**read_table(part), "level": np.full(COUNT, UNKNOWN)})
    write_page(run, Digits())
    page = Page(run.page)
    assert re.findall(r"<h3>([^<]*level[^<]*)</h3>", page.source) == ["Unknown level"]
    assert "Views by level: 20 at unknown level" in page.source
    assert str(UNKNOWN) not in page.texts["views"]


def left_out_of(run: RunFolder, dropped: int, policy: str = "drop") -> str:
    """Drop the first views, filter by 0.73…0.77, and return what the page says."""
    part = run.views / "part-00000.parquet"
    status = np.where(np.arange(COUNT) < dropped, "dropped", "made").astype(object)
    status[-1] = "failed"
    write_table(part, {**read_table(part), "status": status})
    write_json(
        run.views / "plan" / "plan.json", {"filter": {"policy": policy, "lowest": 0.73, "highest": 0.77, "tries": 3}}
    )
    write_page(run, Digits())
    return Page(run.page).texts["views"]


def test_views_that_were_left_out_are_counted_by_reason(run: RunFolder) -> None:
    assert "left out" not in Page(write_page(run, Digits())).texts["views"]
    failed = "1 failed (black in full precision, or no readable file)."
    assert f"Views left out: {failed}" in left_out_of(run, 0)
    said = "3 dropped by the filter (similarity: 1 below 0.73, 2 above 0.77) and " + failed
    write_table(run.views / "part-00000.parquet", {**read_table(run.views / "part-00000.parquet"), "score": SKEWED})
    assert said in left_out_of(run, 3)
    assert "3 dropped by the filter (redraws: 3; similarity: " in left_out_of(run, 3, "redraw")
    write_json(run.views / "summary.json", {"planned": 900, "made": 600, "dropped": 299, "failed": 1})
    text = left_out_of(run, 3)
    assert "299 dropped by the filter (similarity of 3 looked at: 1 below 0.73, 2 above 0.77)" in text
    assert "Chosen from an even sample of 16 among 600 views." in text


def test_dropped_views_are_not_drawn_and_not_counted(run: RunFolder) -> None:
    part = run.views / "part-00000.parquet"
    columns = read_table(part)
    columns["status"] = np.where(np.arange(COUNT) < 12, "made", "dropped").astype(object)
    write_table(part, columns)
    material = collect(run)
    assert material.generated == 12
    assert material.views is not None
    assert set(material.views["level"]) == {0}
    write_json(run.views / "summary.json", {"planned": 20, "made": 11, "dropped": 9})
    assert collect(run).generated == 11, "the summary of a finished stage counts, not its parts"


def test_pairs_are_joined_with_what_other_stages_know(run: RunFolder) -> None:
    found = gathered(run, Digits())
    assert found.pictured == COUNT
    assert found.recorded == 300
    ratio = np.linspace(0, 1, COUNT, dtype=np.float32)
    place = np.array([*range(COUNT), *(i % COUNT for i in range(300))])
    np.testing.assert_allclose(found.columns["ratio"], ratio[place])
    made = np.where((found.columns["level"] >= 0) & (place < 12), SCORES[np.minimum(place, 11)], np.nan)
    np.testing.assert_allclose(found.columns["score"], made, rtol=1e-6)
    assert found.pictures["view"][0] is None, "both its views are of the original"
    np.testing.assert_array_equal(decoded(found.pictures["view"][7])[0, 0], [70, 0, 0])
    assert found.pictures["original"][3] is None, "it cannot be read"
    assert found.pictures["map"][3] is None
    shown = decoded(found.pictures["map"][5]).astype(int)
    above = np.asarray(Image.fromarray(digits()[5, ::4, ::4, 0] > 127).resize(shown.shape[:2]))
    red = shown[..., 0] - shown[..., 2]
    assert red[above].mean() > red[~above].mean() + 50, "orange above the threshold, blue below"


def test_pairs_of_a_run_without_analysis_views_and_pictures(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    add_quality(run)
    found = gathered(run, None)
    assert found.pictured == 0
    assert np.isnan(found.columns["ratio"]).all()
    assert np.isnan(found.columns["score"]).all()
    write_page(run)
    assert "0 pairs have pictures" in Page(run.page).texts["pairs"]


def test_a_parts_map_that_an_older_version_did_not_write_is_done_without(run: RunFolder) -> None:
    part = run.analysis / "part-00000.parquet"
    write_table(part, {name: values for name, values in read_table(part).items() if name != "map"})
    found = gathered(run, Digits())
    assert found.pictures["map"] == [None] * COUNT
    assert np.isfinite(found.columns["ratio"]).all()


def gathered(run: RunFolder, source: Digits | None) -> Gathered:
    material = collect(run)
    assert material.latest is not None
    return gather(run, material.pictured, material.latest, source)


def decoded(file: bytes | None) -> np.ndarray:
    assert file is not None
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_runs_without_weights_are_browsed_too(run: RunFolder) -> None:
    for name in ("pictured", "latest"):
        table = read_table(run.pairs / f"{name}.parquet")
        blank = np.full(len(table["key"]), np.nan, np.float32)
        write_table(run.pairs / f"{name}.parquet", {**table, "foreground": blank, "background": blank})
    write_page(run, Digits())
    page = Page(run.page)
    assert "Highest weights" not in page.texts["pairs"]
    assert "genview pretrain makes this when the experiment has quality" in page.texts["quality"]
    assert "Foreground similarity" not in page.texts["pairs"]
    assert "20 pairs have pictures" in page.texts["pairs"]


def test_confusions_are_counted() -> None:
    classes, counts = counted({"label": np.array(["b", "a", "b", "b"]), "predicted": np.array(["b", "b", "c", "b"])})
    assert classes == ["a", "b", "c"]
    assert counts.tolist() == [[0, 1, 0], [0, 2, 1], [0, 0, 0]]


def test_a_few_classes_give_a_matrix_and_many_give_lists(page: Page) -> None:
    assert "Right on 80.0% of 20 test images." in page.texts["confusion"]
    cells = re.findall(r'style="--share:([\d.]+)">(\d*)<', page.source)
    assert cells == [("0.80", "80"), ("0.20", "20"), ("0.20", "20"), ("0.80", "80")]
    label = np.array([f"class {i:03d}" for i in range(50) for _ in range(4)], object)
    predicted = label.copy()
    predicted[:3], predicted[8] = "class 049", "class 000"
    body = confusion({"label": label, "predicted": predicted}).body
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", body)
    assert rows[:2] == [("class 000", "class 049", "3"), ("class 002", "class 000", "1")]
    assert rows[2:4] == [("class 000", "25%", "4"), ("class 002", "75%", "4")]
    assert "matrix" not in body


def test_the_map_has_a_point_for_each_image_in_the_colour_of_its_class(page: Page) -> None:
    circles = page.all("circle")
    assert len(circles) == COUNT
    assert [circle["cx"] for circle in circles[:2]] == ["14", "65"], "from left to right, 972 units of 1000 wide"
    assert len({circle["fill"] for circle in circles}) == 2
    assert circles[0]["fill"] == circles[2]["fill"] != circles[1]["fill"]
    # Neighbours i + 1, i + 2, i + 3 of classes that take turns: one of three is of the same class.
    assert "Of the 3 nearest neighbours of an image among them, 33% are of its class." in page.texts["space"]


def test_fifty_thousand_pairs_give_a_small_page_soon(run: RunFolder) -> None:
    chance = np.random.default_rng(0)
    place = np.arange(50_000)
    latest = of_pairs(place, chance.choice([-1, 0, 200, 400], 50_000), chance.random(50_000).astype(np.float32))
    write_table(run.pairs / "latest.parquet", latest)
    noise = [thumbnail(Image.fromarray(chance.integers(0, 256, (96, 96, 3), np.uint8)), 96) for _ in range(8)]
    files = {side: np.array([noise[i % 8] for i in range(272)], object) for side in "ab"}
    write_table(run.pairs / "pictured.parquet", {**{n: v[:272] for n, v in latest.items()}, **files})
    start = time.process_time()
    size = write_page(run, Digits()).stat().st_size
    assert time.process_time() - start < 10
    assert size < 15_000_000, "two of the five pictures of a pair are noise here, the largest there are"
    page = Page(run.page)
    assert "272 pairs have pictures" in page.texts["pairs"]
    assert "4,000 points more are an even sample of the latest 50,000." in page.texts["pairs"]
