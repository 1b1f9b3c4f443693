"""Boxes and looks as they are drawn: within the image, distributed as torchvision's, as often as the recipe says."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from genview.pairs import ViewRecipe
from genview.pairs.augment import UNCHANGED, draw_box


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.floats(0.01, 1.0),
    st.integers(0, 2**32),
)
def test_boxes_lie_within_the_image_and_are_whole_pixels(size: tuple[int, int], least: float, seed: int) -> None:
    left, top, right, bottom = draw_box(size, (least, 1.0), Random(seed))
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    for share, length in ((left, size[0]), (right, size[0]), (top, size[1]), (bottom, size[1])):
        assert share * length == pytest.approx(round(share * length), abs=1e-6)


@pytest.mark.parametrize("size", [(200, 150), (400, 100)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    """Means of edges and of the area; of the long image, the area is often too large for any allowed aspect."""
    width, height = size
    chance, scale = Random(0), (0.2, 1.0)
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    found = np.array([draw_box(size, scale, chance) for _ in range(2000)])
    drawn = [v2.RandomResizedCrop(8, scale).make_params([blank]) for _ in range(2000)]
    rows = [(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in drawn]
    expected = np.array(rows) / [width, height, width, height]
    for boxes in (found, expected):
        assert boxes.shape == (2000, 4)
    values = [np.c_[b, (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]), b[:, 2] - b[:, 0]] for b in (found, expected)]
    error = np.sqrt(sum(v.var(axis=0) for v in values) / 2000)
    assert (np.abs(values[0].mean(axis=0) - values[1].mean(axis=0)) < 4 * error + 1e-9).all()
    assert np.abs(values[0].std(axis=0) - values[1].std(axis=0)).max() < 0.02


def test_looks_are_drawn_with_the_probabilities_and_strengths_of_the_recipe() -> None:
    chance, own = Random(0), ViewRecipe(jitter=(0.4, 0.3, 1.2, 0.1), solarise=0.3, coarse=0.1)
    looks = [own.draw((64, 64), chance) for _ in range(4000)]
    jittered = [look for look in looks if look.factors != UNCHANGED]
    shares = {
        "flipped": (sum(look.flipped for look in looks), 0.5),
        "jitter": (len(jittered), 0.8),
        "grey": (sum(look.grey for look in looks), 0.2),
        "blur": (sum(look.sigma > 0 for look in looks), 0.5),
        "solarised": (sum(look.solarised for look in looks), 0.3),
        "coarse": (sum(look.coarse > 0 for look in looks), 0.1),
    }
    for name, (count, share) in shares.items():
        assert abs(count / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5, name
    factors = np.array([look.factors for look in jittered])
    low, high = factors.min(axis=0), factors.max(axis=0)
    np.testing.assert_allclose(low, [0.6, 0.7, 0.0, -0.1], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.3, 2.2, 0.1], atol=0.01)
    assert len(Counter(look.order for look in jittered)) == 24
    sigmas = [look.sigma for look in looks if look.sigma]
    assert (min(sigmas), max(sigmas)) == pytest.approx((0.1, 2.0), abs=0.01)
