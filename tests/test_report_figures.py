"""Figures of the page: quality by level, curves, confusions and the map; what is averaged and what is sampled."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from genview.report.by_level import grouped
from genview.report.collect import series, spread, table
from genview.report.confusion import confusion, counted
from genview.store import Measure, RunFolder, write_table
from made_runs import COUNT, Page, shown_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with its page, to be looked at only."""
    return shown_run(tmp_path_factory.mktemp("report") / "my & run")


@pytest.fixture(scope="module")
def page(made: RunFolder) -> Page:
    return Page(made.page)


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
