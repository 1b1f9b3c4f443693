"""Views of held-out images are drawn in batches that fit into memory, whatever their size."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genview.training.samples import LEVELS, draw


class Drawn:
    """A generator that draws nothing but its seeds, and remembers how many rows it was asked for."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, set[int]()
        self.encoder = SimpleNamespace(encode=lambda x: SimpleNamespace(embedding=x.mean(dim=(2, 3))))

    def sample(self, condition: Tensor, _level: Tensor, _guidance: Tensor, seeds: Sequence[int]) -> Tensor:
        self.asked.add(len(condition))
        return torch.tensor([seed % 251 for seed in seeds])


@pytest.mark.parametrize(("size", "rows"), [(32, {64, 6}), (64, {64, 6}), (128, {16, 6}), (768, {1})])
def test_large_views_are_drawn_a_few_at_a_time(size: int, rows: set[int]) -> None:
    generator: Any = Drawn(size)
    views = draw(generator, torch.rand(70, 3, 4, 4), seed=3)
    assert generator.asked == rows
    assert views.shape == (2, len(LEVELS), 70)
    assert torch.equal(views, draw(Drawn(32), torch.rand(70, 3, 4, 4), seed=3))  # type: ignore[arg-type]
