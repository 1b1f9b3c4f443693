"""Foreground by parts: its direction, the threshold, masks and the sign, against slow and known truths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references
from genview.errors import UserError
from genview.foreground import (
    CentrePrior,
    Direction,
    ScoreHistogram,
    TokenMoments,
    foreground_ratio,
    principal_direction,
    soft_mask,
)


def some_tokens(count: int, width: int, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=chance) * torch.arange(1.0, width + 1) + torch.linspace(-3, 5, width)


# Direction


def test_direction_agrees_with_a_singular_value_decomposition() -> None:
    tokens = some_tokens(400, 12)
    found = principal_direction(tokens)
    vector, mean, explained = references.principal_direction(tokens.numpy())
    assert abs(float(found.vector.double() @ torch.from_numpy(vector))) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    assert found.explained == pytest.approx(explained, abs=1e-9)
    assert found.vector.dtype == found.mean.dtype == torch.float32


def test_direction_agrees_with_the_authors(data: Path) -> None:
    golden = references.authors_arrays(data)
    tokens = torch.from_numpy(golden["pca__data"])
    found = principal_direction(tokens)
    vector = torch.from_numpy(golden["pca__eigenvectors"][:, 0])
    sign = torch.sign(found.vector @ vector)
    torch.testing.assert_close(sign * found.vector, vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, torch.from_numpy(golden["pca__mean"]), rtol=1e-4, atol=1e-5)
    projected = torch.from_numpy(golden["pca__projected"][:, 0])  # not centred, and neither are our scores
    torch.testing.assert_close(sign * found.scores(tokens), projected, rtol=1e-4, atol=1e-5)


def test_direction_does_not_depend_on_the_order_of_tokens() -> None:
    tokens = some_tokens(300, 6)
    torch.testing.assert_close(principal_direction(tokens).vector, principal_direction(tokens.flip(0)).vector)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_of_chunks_are_moments_of_the_whole(chunks: list[int], seed: int) -> None:
    tokens = some_tokens(sum(chunks), 4, seed) + 1000
    moments = TokenMoments(4)
    for chunk in tokens.split(chunks):
        moments.add(chunk)
    rows = tokens.double()
    centred = rows - rows.mean(dim=0)
    assert moments.count == len(tokens)
    torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
def test_constant_tokens_do_no_harm(value: float) -> None:
    tokens = torch.full((5, 9, 4), value)
    moments = TokenMoments(4)
    moments.add(tokens)
    direction, variance = moments.direction()
    assert (direction.explained, variance) == (0.0, 0.0)
    assert float(direction.vector.norm()) == pytest.approx(1)
    histogram = ScoreHistogram(float(moments.mean @ direction.vector.double()), variance)
    histogram.add(direction.scores(tokens))
    assert set(foreground_ratio(tokens, direction, histogram.threshold(0.4)).tolist()) <= {0.0, 1.0}


def test_saved_and_read_back(tmp_path: Path) -> None:
    direction = principal_direction(some_tokens(50, 5))
    direction.save(tmp_path / "d.safetensors")
    found = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(found.vector, direction.vector)
    assert torch.equal(found.mean, direction.mean)
    assert found.explained == pytest.approx(direction.explained, abs=1e-7)
    assert torch.equal(direction.flipped().vector, -direction.vector)
    assert torch.equal(direction.flipped().mean, direction.mean)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_direction_of_ones_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "v.npy", np.array([1, -2, 3, 0.5]).reshape(shape))
    assert Direction.from_npy(tmp_path / "v.npy", 4).vector.tolist() == [1, -2, 3, 0.5]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(5), "has 5 values, but the encoder's tokens have 4"),
        (np.ones((2, 2)), r"has shape \(2, 2\)"),
        (np.float32(1), r"has shape \(\)"),
        (np.zeros(4), "points nowhere"),
        (np.array([1, np.nan, 0, 0]), "points nowhere"),
        (np.zeros(0), "points nowhere"),
        (np.array(list("abcd")), "not one array of real numbers"),
        (np.array([None, 1], dtype=object), "cannot be read as an .npy vector"),
    ],
)
def test_a_bad_direction_is_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(UserError, match=words):
        Direction.from_npy(tmp_path / "v.npy", 4)


def test_files_that_are_no_npy_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", v=np.ones(4))
    (tmp_path / "text.npy").write_text("0.1 0.2")
    (tmp_path / "empty.npy").touch()
    for name in ("v.npz", "text.npy", "empty.npy", "none.npy"):
        with pytest.raises(UserError, match=name):
            Direction.from_npy(tmp_path / name, 4)


# Threshold


def scores_of(kind: str, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    normal = torch.randn(5000, generator=chance, dtype=torch.float64)
    return {
        "normal": 3 * normal - 5,
        "skewed": normal.exp(),
        "two heaps": torch.where(normal > 0.2, normal + 10, normal),
        "outlier": torch.cat([normal[:499] * 1e-3 + 1, torch.tensor([1e3])]),
    }[kind].float()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["normal", "skewed", "two heaps", "outlier"]), st.floats(0.05, 0.95), st.integers(0, 99))
def test_threshold_is_the_quantile(kind: str, share: float, seed: int) -> None:
    scores = scores_of(kind, seed)
    variance = float(scores.double().var(correction=0))
    histogram = ScoreHistogram(float(scores.double().mean()), variance)
    for chunk in scores.split(700):
        histogram.add(chunk)
    found = histogram.threshold(share)
    width = 24 * variance**0.5 / 65536
    ordered = scores.double().sort(descending=True).values
    above = int(share * len(scores) + 1e-6)  # a share that is a hair below a whole number of scores means that number
    last_above, first_below = ordered[above - 1], ordered[above]
    # Any number between these two leaves the stated share above it; the histogram may miss by one bin.
    assert float(first_below) - 2 * width <= found <= float(last_above) + 2 * width
    near = int(((scores.double() - found).abs() <= 2 * width * (1 + 1e-6)).sum())
    assert abs(int((scores.double() > found).sum()) - above) <= near


def test_scores_beyond_the_range_are_counted_at_its_ends() -> None:
    histogram = ScoreHistogram(0.0, 1.0)
    histogram.add(torch.tensor([-1e6, -1e6, -1e6, 0.5, 0.6, 1e6, 1e6]))
    assert -12 < histogram.threshold(0.6) <= 0.5
    assert 0.6 < histogram.threshold(0.3) <= 12


# Masks


def test_ratio_agrees_with_counting() -> None:
    tokens = some_tokens(6 * 10, 5).view(6, 10, 5)
    direction = principal_direction(tokens.flatten(0, 1))
    found = foreground_ratio(tokens, direction, 1.5)
    assert found.tolist() == pytest.approx(references.foreground_ratio(tokens.numpy(), direction.vector.numpy(), 1.5))
    assert 0 < float(found.mean()) < 1


def test_a_token_on_the_threshold_is_background() -> None:
    direction = Direction(torch.tensor([1.0, 0.0]), torch.zeros(2), 1.0)
    tokens = torch.tensor([[[0.5, 9.0], [0.75, 9.0], [0.25, 9.0], [1.0, 9.0]]])
    assert foreground_ratio(tokens, direction, 0.5).tolist() == [0.5]


def test_soft_mask_by_hand() -> None:
    found = soft_mask(torch.tensor([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]), atol=1e-6, rtol=0)


# Sign


def test_the_side_on_which_the_centre_lies_is_foreground() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 8, 6, generator=chance)
    scores[:, 2:6, 1:5] += 0.3  # rows and columns whose middle lies in the middle half, or on its edge
    for sign in (1, -1):
        prior, difference = CentrePrior((8, 6)), []
        for chunk in (sign * scores.flatten(1)).split(7):
            prior.add(chunk)
        for image in (sign * scores).double().numpy():
            inside = image[2:6, 1:5]
            difference.append(inside.mean() - (image.sum() - inside.sum()) / (48 - inside.size))
        wanted = np.mean(difference) / (np.std(difference) / np.sqrt(40))
        found, evidence = prior.decide()
        assert found == sign
        assert evidence == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 2)])
def test_a_grid_without_border_gives_no_evidence(grid: tuple[int, int]) -> None:
    prior = CentrePrior(grid)
    prior.add(torch.randn(5, grid[0] * grid[1]))
    assert prior.decide() == (1, 0.0)
