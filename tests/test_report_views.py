"""Views on the page: beside their originals by level, chosen by score, and counted where they were left out."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genview.images.thumbnail import thumbnail
from genview.noise import UNKNOWN
from genview.report import gallery, write_page
from genview.report.collect import collect, table
from genview.store import RunFolder, read_table, write_json, write_table
from made_runs import COUNT, SKEWED, Digits, Page, copied, digits, shown_run


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
