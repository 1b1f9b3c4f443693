"""Weighted pairs that are kept for the page: which, of which views, and what a resumed run makes of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from genview.errors import UserError
from genview.quality import Quality
from genview.store import read_table
from genview.training import examples
from genview.training.examples import PairExamples


def batch(step: int, count: int = 6, views: int = 2) -> tuple[list[Tensor], Quality, Tensor, list[str], Tensor]:
    """Views whose pixels are 10 · row + side, weights that tell step, row and pair, levels 100 · side − 1."""
    pixels = [
        torch.arange(count)[:, None, None, None].mul(10).add(side).expand(count, 3, 4, 4).to(torch.uint8)
        for side in range(views)
    ]
    pairs = views * (views - 1) // 2
    weight = step + torch.arange(count * pairs).view(count, pairs) / 100
    weight = weight[:, 0] if pairs == 1 else weight
    levels = (100 * torch.arange(views) - 1).expand(count, views)
    quality = Quality(weight / 2, -weight, weight)
    return pixels, quality, levels, [f"{step}/{row}" for row in range(count)], 10 * weight


def offer(kept: PairExamples, step: int, count: int = 6, views: int = 2) -> None:
    pixels, quality, levels, keys, losses = batch(step, count, views)
    kept.offer(pixels, quality, levels, keys, losses=losses, step=step)


def test_numbers_of_every_pair_are_kept(tmp_path: Path) -> None:
    kept = PairExamples()
    for step in (10, 20):
        offer(kept, step)
    kept.save(tmp_path)
    found = read_table(tmp_path / "quality.parquet")
    wanted = np.concatenate([batch(step)[1].weight.numpy() for step in (10, 20)])
    np.testing.assert_allclose(found["weight"], wanted)
    np.testing.assert_allclose(found["foreground"], wanted / 2)
    np.testing.assert_allclose(found["background"], -wanted)
    np.testing.assert_allclose(found["loss"], 10 * wanted)
    assert found["step"].tolist() == [10] * 6 + [20] * 6
    assert set(found["level"].tolist()) == {99}


def test_pairs_of_more_views_show_their_own_two(tmp_path: Path) -> None:
    kept = PairExamples()
    offer(kept, 1, count=2, views=4)
    kept.save(tmp_path)
    found = read_table(tmp_path / "quality.parquet")
    assert found["level"].tolist() == [100 * b - 1 for _, b in combinations(range(4), 2)] * 2
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as shown:
        sides = zip(shown["a"][:, 0, 0, 0].tolist(), shown["b"][:, 0, 0, 0].tolist(), strict=True)
        assert list(sides) == [(10 * row + a, 10 * row + b) for row in (0, 1) for a, b in combinations(range(4), 2)]
        assert shown["keys"].tolist() == ["1/0"] * 6 + ["1/1"] * 6


def test_the_latest_pairs_and_the_extremes_of_all_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MOST_PAIRS", 20)
    kept = PairExamples()
    for step in range(1, 9):
        offer(kept, step)
    assert sum(len(part["step"]) for part in kept._latest) <= 24
    kept.save(tmp_path)
    assert read_table(tmp_path / "quality.parquet")["step"].tolist() == [5] * 2 + [6] * 6 + [7] * 6 + [8] * 6
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as shown:
        every = np.sort(np.concatenate([batch(step)[1].weight.numpy() for step in range(1, 9)]))
        np.testing.assert_allclose(shown["weight"], [*every[:8], *every[-8:]])


def test_a_killed_run_ends_in_the_same_files(tmp_path: Path) -> None:
    whole = PairExamples()
    for step in range(1, 7):
        offer(whole, step)
    whole.save(tmp_path / "whole")
    first = PairExamples()
    for step in range(1, 5):
        offer(first, step)
    first.save(tmp_path / "cut")  # and killed before the checkpoint of step 3 was followed by another
    second = PairExamples.continued(tmp_path / "cut", 3)
    for step in range(4, 7):
        offer(second, step)
    second.save(tmp_path / "cut")
    for name, values in read_table(tmp_path / "whole" / "quality.parquet").items():
        np.testing.assert_array_equal(values, read_table(tmp_path / "cut" / "quality.parquet")[name])
    shown = [np.load(tmp_path / name / "examples.npz", allow_pickle=False) for name in ("whole", "cut")]
    assert shown[0]["keys"].tolist() == shown[1]["keys"].tolist()
    assert np.array_equal(shown[0]["a"], shown[1]["a"])


def test_a_run_from_the_start_takes_nothing_over_and_damage_is_named(tmp_path: Path) -> None:
    kept = PairExamples()
    offer(kept, 1)
    kept.save(tmp_path)
    assert PairExamples.continued(tmp_path, 0) == PairExamples()
    assert PairExamples.continued(tmp_path / "absent", 5) == PairExamples()
    (tmp_path / "examples.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"examples\.npz is damaged"):
        PairExamples.continued(tmp_path, 5)


def test_without_losses_and_without_pairs(tmp_path: Path) -> None:
    PairExamples().save(tmp_path)
    assert not list(tmp_path.iterdir())
    kept = PairExamples()
    pixels, quality, levels, keys, _ = batch(1)
    kept.offer(pixels, quality, levels, keys, losses=None, step=1)
    kept.save(tmp_path)
    assert np.isnan(read_table(tmp_path / "quality.parquet")["loss"]).all()
