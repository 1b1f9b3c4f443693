from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from conftest import score
from genview.errors import UserError
from genview.images.source import UnreadableImage
from genview.noise import UNKNOWN
from genview.report import Result, gallery, results, write_page
from genview.report.by_level import grouped
from genview.report.collect import collect, series, spread, table
from genview.report.words import label, outcome, points
from genview.store import Measure, RunFolder, read_table, write_json, write_table, write_tar

SECTIONS = ["results", "views", "foreground", "pairs", "quality", "histograms", "curves", "quarantine", "experiment"]
HOSTILE = "<script>alert(1)</script>/\"'><img src=x onerror=alert(2)>.png"
COUNT, SIZE = 20, 32
SCORES = 0.75 + 0.01 * np.array([3, -5, 1, 5, -1, 2, 0, -3, 4, -4, -2, 0, *range(8)])
"""Those of the views at level 0, the first twelve, are 0.75 on average."""
SKEWED = np.concatenate([[0.9, 0.7, 0.8], np.full(COUNT - 3, 0.75)]).astype(np.float32)


class Page(HTMLParser):
    """The elements of a page: tags with attributes, text, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._section = "header"
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_data(self, data: str) -> None:
        self.texts[self._section] = self.texts.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Digits:
    """The images of the run below, as a source; number 3 cannot be read."""

    classes = ()

    def __len__(self) -> int:
        return COUNT

    def key(self, i: int) -> str:
        return key(i)

    def label(self, i: int) -> int | None:
        return None if i < COUNT else 0

    def image(self, i: int) -> Image.Image:
        if i == 3:
            raise UnreadableImage("made so")
        return Image.fromarray(digits()[i])


def key(i: int) -> str:
    return HOSTILE if i == 0 else f"digits/{i:03d}.png"


def digits() -> np.ndarray:
    small = (load_digits().images[:COUNT] * 255 / 16).astype(np.uint8)
    return np.repeat(np.repeat(np.repeat(small, 4, 1), 4, 2)[..., None], 3, axis=3)


def add_analysis(run: RunFolder) -> None:
    images = digits()
    maps = images[:, ::4, ::4, 0].astype(np.float32) / 255 - 0.5
    ratio = (maps > 0).mean((1, 2)).astype(np.float32)
    keys = [key(i) for i in range(COUNT)]
    embedding = np.zeros((COUNT, 4), np.float16)
    write_table(
        run.analysis / "part-00000.parquet",
        {"key": keys, "ratio": np.linspace(0, 1, COUNT, dtype=np.float32), "embedding": embedding},
    )
    write_json(run.analysis / "summary.json", {"threshold": 0.12345678, "sign": {"rule": "<b>border</b>"}})
    np.savez(run.analysis / "examples.npz", images=images, maps=maps, ratio=ratio, keys=np.array(keys))


def add_views(run: RunFolder) -> None:
    """Twelve views at level 0 and eight at level 300, each of one colour: (10·row, 0, 0)."""
    members = []
    for i in range(COUNT):
        buffer = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 0)).save(buffer, "png")
        members.append((f"{i}.png", buffer.getvalue()))
    places = write_tar(run.views / "part-00000.tar", members)
    write_table(
        run.views / "part-00000.parquet",
        {
            "key": [key(i) for i in range(COUNT)],
            "level": np.where(np.arange(COUNT) < 12, 0, 300).astype(np.int32),
            "status": ["made"] * COUNT,
            "shard": ["part-00000.tar"] * COUNT,
            "offset": np.array([offset for offset, _ in places]),
            "length": np.array([length for _, length in places]),
            "score": np.where(np.arange(COUNT) < 12, SCORES, np.nan).astype(np.float32),
            "diversity": np.where(np.arange(COUNT) < 12, 0.25, np.nan).astype(np.float32),
        },
    )


def add_pairs(run: RunFolder) -> None:
    """Twenty pairs whose weights are 0.05, 0.15, … 1.95 in a shuffled order."""
    weight = np.random.default_rng(0).permutation(np.arange(COUNT) * 0.1 + 0.05).astype(np.float32)
    run.pairs.mkdir(parents=True)
    np.savez(
        run.pairs / "examples.npz",
        a=digits(),
        b=digits()[::-1],
        weight=weight,
        foreground=weight / 2,
        background=-weight / 2,
        level=np.arange(COUNT) - 1,
        keys=np.array([f"{w:.2f}" for w in weight]),
    )


def add_quality(run: RunFolder) -> None:
    """Three hundred pairs, a hundred of each of three levels."""
    place = np.arange(300)
    level, weight = place // 100 * 100 - 1, (place % 100 / 100).astype(np.float32)
    similarity = {"foreground": np.sign(level).astype(np.float32), "background": weight}
    rows: dict[str, np.ndarray] = {"level": level, "weight": weight, **similarity, "loss": weight, "step": place + 1}
    write_table(run.pairs / "quality.parquet", rows)


def add_weighted(run: RunFolder) -> None:
    add_pairs(run)
    add_quality(run)


def add_measures(run: RunFolder, *, knn: float, linear: float) -> None:
    for step in range(10, 110, 10):
        run.measure("train/loss", 5 - step / 100, step)
        run.measure("train/feature_std", float("nan") if step == 10 else 0.8, step)
        run.measure("train/images_per_second", 100.0 + step, step)
        run.measure("train/waiting", 0.25, step)
        run.measure("quality/weight_std", 0.2, step)
    run.measure("online/knn/top1@k=20", 0.3, 50)
    score(run, {"knn/top1@k=20": knn, "linear/top1": linear})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "my & run")
    add_analysis(run)
    add_views(run)
    add_weighted(run)
    add_measures(run, knn=0.671, linear=0.5)
    add_measures(run.baseline, knn=0.631, linear=0.5125)
    for i in range(60):
        run.quarantine(f"bad/{i}.png" if i else HOSTILE, "empty & <truncated>")
    run.experiment.write_text("images:\n  root: <photos> & more\n")
    return run


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


def test_whole_page(run: RunFolder) -> None:
    score(run, {"linear/top1": 0.75}, "best")
    score(run, {"knn/top1@k=20": 0.671, "linear/top1": 0.5})
    assert write_page(run, Digits()) == run.page
    page = Page(run.page)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert "Nothing here yet" not in page.source
    assert [row["href"] for row in page.all("a")] == [f"#{name}" for name in SECTIONS]
    assert page.source.count('class="reading"') == len(SECTIONS)
    assert len(page.all("svg")) == 9
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    text = page.texts["results"]
    for number in ("67.1%", "63.1%", "+4.0", "50.0%", "51.2%", "−1.2", "knn-1", "linear-1", "75.0%"):
        assert number in text
    assert "with generated views and quality weights" in text
    assert "images: root: <photos> & more" in " ".join(page.texts["experiment"].split())
    assert "0.1235" in page.texts["foreground"]
    assert page.source.count("<title>my &amp; run · genview</title>") == 1
    assert run.page.stat().st_size < 1_000_000


def test_page_needs_nothing_from_elsewhere(run: RunFolder) -> None:
    write_page(run, Digits())
    page = Page(run.page)
    assert not re.search(r"https?:|xlink:|@import|url\((?!#)", page.source)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")


def test_strings_from_data_are_escaped(run: RunFolder) -> None:
    write_page(run, Digits())
    page = Page(run.page)
    assert "<script" not in page.source
    assert "<b>border" not in page.source
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in page.texts["quarantine"]
    assert HOSTILE in page.texts["views"]
    assert {"title": HOSTILE, "class": "tile"} in page.all("figure")


def test_ids_are_unique(run: RunFolder) -> None:
    write_page(run, Digits())
    ids = [attributes["id"] for _, attributes in Page(run.page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', run.page.read_text())
    assert set(used) <= set(ids)


def test_views_stand_beside_their_originals_by_level(run: RunFolder) -> None:
    write_page(run, Digits())
    page = Page(run.page)
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
    assert "not at hand" not in Page(run.page).source
    examples = run.analysis / "examples.npz"
    kept = {name: values[13:15] for name, values in np.load(examples).items()}
    np.savez(examples, **kept)
    write_page(run)
    alts = [str(image["alt"]) for image in Page(run.page).all("img")]
    originals = [alt for alt in alts if alt.startswith("Original")]
    assert originals == ["Original digits/013.png", "Original digits/014.png"]


def test_highest_and_lowest_weights_are_chosen(run: RunFolder) -> None:
    pairs = dict(np.load(run.pairs / "examples.npz"))
    high, low = gallery.extremes(pairs)
    assert pairs["weight"][high] == pytest.approx([1.95, 1.85, 1.75, 1.65, 1.55, 1.45, 1.35, 1.25])
    assert pairs["weight"][low] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75])
    write_page(run)
    section = Page(run.page).texts["pairs"]
    weights = [float(found) for found in re.findall(r"weight ([\d.]+) ·", section)]
    assert weights == pytest.approx(pairs["weight"][high + low].tolist())


def test_few_pairs_are_never_shown_twice_and_nan_never() -> None:
    assert gallery.extremes({"weight": np.array([1.0, np.nan, 3.0, 2.0])}) == ([2, 3], [0])
    assert gallery.extremes({"weight": np.array([1.0])}) == ([0], [])


def test_originals_among_pairs_have_no_level(run: RunFolder) -> None:
    write_page(run)
    pairs = dict(np.load(run.pairs / "examples.npz"))
    high, low = gallery.extremes(pairs)
    expected = sum(int(pairs["level"][i]) == -1 for i in high + low)
    assert Page(run.page).texts["pairs"].count("not generated") == expected == 1


@pytest.mark.parametrize("done", range(5))
def test_half_done_runs_give_a_page_that_names_the_missing_stage(tmp_path: Path, done: int) -> None:
    run = RunFolder(tmp_path / "run")
    stages = (add_analysis, add_views, add_weighted, lambda run: add_measures(run, knn=0.5, linear=0.5))
    for stage in stages[:done]:
        stage(run)
    write_page(run)
    page = Page(run.page)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    verbs = (("foreground", "analyse"), ("views", "generate"), ("pairs", "pretrain"), ("results", "evaluate"))
    for number, (section, verb) in enumerate(verbs):
        assert (f"genview {verb} makes this" in page.texts[section]) == (number >= done)
    assert page.texts["histograms"].count("Nothing here yet") == max(0, 3 - done)
    assert "genview run makes this" in page.texts["experiment"]
    assert "None so far" in page.texts["quarantine"]
    assert ("No baseline" in page.texts["results"]) == (done == 4)


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


def test_quality_is_shown_for_each_level(run: RunFolder) -> None:
    write_page(run)
    page = Page(run.page)
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


def test_levels_are_counted(run: RunFolder) -> None:
    write_page(run)
    page = Page(run.page)
    assert "Views by level: 12 at level 0, 8 at level 300" in page.source
    ticks = re.findall(r"<text[^>]*>(\d+)</text>", page.source[page.source.index("Views by level") :])
    assert ticks[:2] == ["0", "300"]


def test_many_levels_give_a_few_rows_and_a_histogram(run: RunFolder) -> None:
    part = run.views / "part-00000.parquet"
    columns = table(run.views, ["key", "status", "shard", "offset", "length", "score", "diversity"])
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
    assert pixels(gallery.data_uri(wide)).shape == (128, 128, 3)
    assert gallery.data_uri(wide).startswith("data:image/jpeg;base64,")
    tiny = Image.fromarray(digits()[5])
    assert gallery.data_uri(tiny).startswith("data:image/png;base64,")
    np.testing.assert_array_equal(pixels(gallery.data_uri(tiny)), digits()[5])


@pytest.mark.parametrize(
    "name",
    [
        "analysis/examples.npz",
        "pairs/examples.npz",
        "pairs/quality.parquet",
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
    np.savez(run.pairs / "examples.npz", weight=np.array([{"a": 1}], dtype=object))
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
