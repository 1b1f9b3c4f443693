"""Pairs that are kept for the page: which, of which views, and what a resumed run makes of them."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genview.errors import UserError
from genview.images.origin import Origin
from genview.noise import UNKNOWN
from genview.pairs import PairBatch
from genview.quality import Quality
from genview.store import read_table
from genview.training import examples
from genview.training.examples import PairExamples


def batch(step: int, count: int = 6, views: int = 2) -> tuple[PairBatch, Quality, list[str], Tensor]:
    """Views whose pixels are 10 · row + side, weights that tell step, row and pair, levels 100 · side − 1."""
    pixels = tuple(
        torch.arange(count)[:, None, None, None].mul(10).add(side).expand(count, 3, 4, 4).to(torch.uint8)
        for side in range(views)
    )
    pairs = views * (views - 1) // 2
    weight = step + torch.arange(count * pairs).view(count, pairs) / 100
    weight = weight[:, 0] if pairs == 1 else weight
    sides = torch.arange(views).expand(count, views)
    origin = Origin(torch.arange(count), sides - 1, torch.zeros(count, views, 4), sides > 0)
    keys = [f"{step}/{row}" for row in range(count)]
    return PairBatch(pixels, origin, 100 * sides - 1), Quality(weight / 2, -weight, weight), keys, 10 * weight


def offer(kept: PairExamples, step: int, count: int = 6, views: int = 2) -> None:
    pairs, quality, keys, losses = batch(step, count, views)
    kept.offer(pairs, quality, keys, ["even", "odd"] * (count // 2), losses=losses, step=step)


def weights(step: int) -> np.ndarray:
    return batch(step)[1].weight.numpy()


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)))


def test_numbers_of_every_pair_are_kept(tmp_path: Path) -> None:
    kept = PairExamples()
    for step in (10, 20):
        offer(kept, step)
    kept.save(tmp_path)
    found = read_table(tmp_path / "latest.parquet")
    wanted = np.concatenate([weights(step) for step in (10, 20)])
    np.testing.assert_allclose(found["weight"], wanted)
    np.testing.assert_allclose(found["foreground"], wanted / 2)
    np.testing.assert_allclose(found["background"], -wanted)
    np.testing.assert_allclose(found["loss"], 10 * wanted)
    assert found["step"].tolist() == [10] * 6 + [20] * 6
    assert set(found["level"].tolist()) == {99}
    assert set(found["draw"].tolist()) == {0}
    assert found["key"].tolist() == [f"{step}/{row}" for step in (10, 20) for row in range(6)]
    assert found["class"].tolist() == ["even", "odd"] * 6


def test_pairs_of_more_views_show_their_own_two(tmp_path: Path) -> None:
    kept = PairExamples()
    offer(kept, 1, count=2, views=4)
    kept.save(tmp_path)
    found = read_table(tmp_path / "latest.parquet")
    assert found["level"].tolist() == [100 * b - 1 for _, b in combinations(range(4), 2)] * 2
    assert found["draw"].tolist() == [b - 1 for _, b in combinations(range(4), 2)] * 2
    shown = read_table(tmp_path / "pictured.parquet")
    sides = [(pixels(a)[0, 0, 0], pixels(b)[0, 0, 0]) for a, b in zip(shown["a"], shown["b"], strict=True)]
    assert sides == [(10 * row + a, 10 * row + b) for row in (0, 1) for a, b in combinations(range(4), 2)]
    assert shown["key"].tolist() == ["1/0"] * 6 + ["1/1"] * 6


def test_the_generated_view_tells_the_level_though_its_own_is_unknown(tmp_path: Path) -> None:
    pairs, quality, keys, _ = batch(1, count=2)
    levels = torch.tensor([[-1, UNKNOWN], [-1, -1]])
    pairs = replace(pairs, levels=levels, origin=pairs.origin._replace(draw=torch.tensor([[-1, 3], [-1, -1]])))
    kept = PairExamples()
    kept.offer(pairs, quality, keys, ["", ""], losses=None, step=1)
    kept.save(tmp_path)
    found = read_table(tmp_path / "latest.parquet")
    assert (found["level"].tolist(), found["draw"].tolist()) == ([UNKNOWN, -1], [3, -1])
    assert np.isnan(found["loss"]).all()


def test_without_weights_pairs_count_alike_and_none_is_extreme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "SAMPLED", 4)
    kept = PairExamples()
    for step in (1, 2, 3):
        pairs, _, keys, losses = batch(step)
        kept.offer(pairs, None, keys, [""] * 6, losses=losses, step=step)
    kept.save(tmp_path)
    found = read_table(tmp_path / "latest.parquet")
    assert set(found["weight"].tolist()) == {1}
    assert np.isnan([found["foreground"], found["background"]]).all()
    assert len(read_table(tmp_path / "pictured.parquet")["key"]) == 4


def test_the_latest_pairs_are_kept_and_the_extremes_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MOST_PAIRS", 20)
    monkeypatch.setattr(examples, "SAMPLED", 0)
    kept = PairExamples()
    for step in range(1, 9):
        offer(kept, step)
    assert sum(len(part["step"]) for part in kept._latest) <= 24
    kept.save(tmp_path)
    assert read_table(tmp_path / "latest.parquet")["step"].tolist() == [5] * 2 + [6] * 6 + [7] * 6 + [8] * 6
    every = np.sort(np.concatenate([weights(step) for step in range(1, 9)]))
    shown = read_table(tmp_path / "pictured.parquet")["weight"]
    np.testing.assert_allclose(shown, [*every[:8], *every[-8:]])


def test_every_pair_has_the_same_chance_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "SAMPLED", 60)
    kept = PairExamples()
    for step in range(1, 101):
        pairs, _, keys, _ = batch(step)
        kept.offer(pairs, None, keys, [""] * 6, losses=None, step=step)
    steps = np.array([row["step"] for row in kept._pictured])
    assert len({(row["key"], row["step"]) for row in kept._pictured}) == len(steps) == 60
    # Of 60 among 600 a quarter each should come from each quarter of the steps: 15, with a deviation of 3.2.
    assert np.abs(np.histogram(steps, bins=[1, 26, 51, 76, 101])[0] - 15).max() < 4 * 3.2


def test_pictures_are_small_and_of_what_the_encoder_saw(tmp_path: Path) -> None:
    pairs, quality, keys, losses = batch(1, count=1)
    views = tuple(torch.full((1, 3, 224, 224), grey, dtype=torch.uint8) for grey in (40, 200))
    kept = PairExamples()
    kept.offer(replace(pairs, views=views), quality, keys, [""], losses=losses, step=1)
    kept.save(tmp_path)
    shown = read_table(tmp_path / "pictured.parquet")
    for name, grey in (("a", 40), ("b", 200)):
        picture = pixels(shown[name][0])
        assert picture.shape == (96, 96, 3)
        assert np.abs(picture.astype(int) - grey).max() <= 2


def test_a_killed_run_ends_in_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "SAMPLED", 10)
    whole = PairExamples()
    for step in range(1, 7):
        offer(whole, step)
    whole.save(tmp_path / "whole")
    first = PairExamples()
    for step in range(1, 4):
        offer(first, step)
    first.save(tmp_path / "cut")  # and killed soon after the checkpoint
    second = PairExamples.continued(tmp_path / "cut", 3)
    for step in range(4, 7):
        offer(second, step)
    second.save(tmp_path / "cut")
    for file in ("latest.parquet", "pictured.parquet"):
        whole_table, cut_table = (read_table(tmp_path / name / file) for name in ("whole", "cut"))
        for name, values in whole_table.items():
            np.testing.assert_array_equal(values, cut_table[name])


def test_pairs_after_the_checkpoint_are_left_out(tmp_path: Path) -> None:
    kept = PairExamples()
    for step in range(1, 5):
        offer(kept, step)
    kept.save(tmp_path)
    found = PairExamples.continued(tmp_path, 3)
    assert {int(step) for step in found._latest[0]["step"]} == {row["step"] for row in found._pictured} == {1, 2, 3}


def test_a_run_from_the_start_takes_nothing_over_and_damage_is_named(tmp_path: Path) -> None:
    kept = PairExamples()
    offer(kept, 1)
    kept.save(tmp_path)
    assert PairExamples.continued(tmp_path, 0) == PairExamples()
    assert PairExamples.continued(tmp_path / "absent", 5) == PairExamples()
    (tmp_path / "pictured.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"pictured\.parquet is damaged"):
        PairExamples.continued(tmp_path, 5)


def test_nothing_is_written_where_no_pair_was_offered(tmp_path: Path) -> None:
    PairExamples().save(tmp_path)
    assert not list(tmp_path.iterdir())
