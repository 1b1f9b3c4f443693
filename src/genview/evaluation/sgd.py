"""SGD for a whole grid of linear probes at once: their weights stand side by side in one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genview.evaluation.features import Tell
from genview.evaluation.rows import Rows
from genview.images.source import silent
from genview.seeds import seed_of


class Choice(NamedTuple):
    """Rate and weight decay of one probe."""

    rate: float
    decay: float


@dataclass(frozen=True)
class Course:
    """How probes are trained: passes over the rows, rows a step, momentum, seed of the order, and who is told."""

    epochs: int
    batch: int
    momentum: float
    seed: int
    tell: Tell = silent

    def trained(self, rows: Rows, classes: int, grid: Sequence[Choice]) -> Tensor:
        """Train a probe for each choice and return their weights G×(D + 1)×C, the last row of each its bias.

        Each minimises the mean cross-entropy + decay/2 · |W|² (bias free) by SGD with momentum, whose rate falls to
        zero along half a cosine. All see the same batches, and none knows of the others. Memory: three times the
        weights, and B×(D + 1) and B×G×C for a batch.
        """
        width = len(rows.mean) + 1
        weights = torch.zeros(len(grid), width, classes, device=rows.device)
        moved = torch.zeros_like(weights)
        rates, decays = (
            torch.tensor(numbers, device=rows.device).view(-1, 1, 1) for numbers in zip(*grid, strict=True)
        )
        decays = decays.repeat(1, width, 1)
        decays[:, -1] = 0
        steps = self.epochs * math.ceil(len(rows) / self.batch)
        for step, places in enumerate(self.batches(len(rows))):
            x, y = rows.part(places)
            moved.mul_(self.momentum).add_(gradients(x, y, weights)).addcmul_(decays, weights)
            weights.addcmul_(rates, moved, value=-(1 + math.cos(math.pi * step / steps)) / 2)
            self.tell("linear", step + 1, steps, "")
        return weights

    def batches(self, count: int) -> Iterator[Tensor]:
        """Yield the places of each step's rows, in an order of its own for each pass."""
        chance = torch.Generator().manual_seed(seed_of(self.seed, "", 0, "linear"))
        for _ in range(self.epochs):
            yield from torch.randperm(count, generator=chance).split(self.batch)


def gradients(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy of each of G probes: xᵀ (softmax(x W) − one-hot of y) / B, as G×D×C.

    Args:
        x: B×D.
        y: labels B.
        weights: G×D×C.
    """
    grid, width, classes = weights.shape
    scores = (x @ weights.transpose(0, 1).reshape(width, grid * classes)).view(len(x), grid, classes)
    wrong = scores.softmax(dim=2)
    wrong[torch.arange(len(y), device=y.device), :, y] -= 1
    return (x.T @ wrong.view(len(x), -1)).view(width, grid, classes).transpose(0, 1) / len(x)
