"""Pairs on the page: the highest and the lowest weights, and all that can be browsed of those seen in training."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genview.images.thumbnail import thumbnail
from genview.report import gallery, write_page
from genview.report.collect import collect
from genview.report.pairs import Gathered, gather
from genview.store import RunFolder, read_table, write_table
from made_runs import COUNT, SCORES, Digits, Page, add_quality, copied, digits, of_pairs, shown_run


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


def test_fifty_thousand_pairs_give_a_small_page(run: RunFolder) -> None:
    chance = np.random.default_rng(0)
    place = np.arange(50_000)
    latest = of_pairs(place, chance.choice([-1, 0, 200, 400], 50_000), chance.random(50_000).astype(np.float32))
    write_table(run.pairs / "latest.parquet", latest)
    noise = [thumbnail(Image.fromarray(chance.integers(0, 256, (96, 96, 3), np.uint8)), 96) for _ in range(8)]
    files = {side: np.array([noise[i % 8] for i in range(272)], object) for side in "ab"}
    write_table(run.pairs / "pictured.parquet", {**{n: v[:272] for n, v in latest.items()}, **files})
    size = write_page(run, Digits()).stat().st_size
    assert size < 15_000_000, "two of the five pictures of a pair are noise here, the largest there are"
    page = Page(run.page)
    assert "272 pairs have pictures" in page.texts["pairs"]
    assert "4,000 points more are an even sample of the latest 50,000." in page.texts["pairs"]
