"""Features as a linear probe reads them: standardised and with a constant, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genview.evaluation.features import Features

ROWS = 2**15
"""Rows that are read at a time: 256 MB at 2,048 values."""


@dataclass(frozen=True)
class Rows:
    """Some rows of features x N×D and their labels, read as (x − `mean`) / `std` with a last column of ones.

    `index` says which rows; nothing is copied before it is read. float16 and mapped files do as well as float32.
    """

    features: Features
    index: Tensor
    mean: Tensor
    std: Tensor
    device: str = "cpu"

    @staticmethod
    def standardised(features: Features, device: str = "cpu") -> Rows:
        """All rows, with the mean and deviation that they have themselves."""
        count, width = features.x.shape
        mean, square = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        for part in features.x.split(ROWS):
            mean += part.double().sum(dim=0) / count
        for part in features.x.split(ROWS):
            square += (part.double() - mean).square().sum(dim=0) / count
        std = square.sqrt() + 1e-6
        return Rows(features, torch.arange(len(features.y)), mean.float().to(device), std.float().to(device), device)

    def __len__(self) -> int:
        return len(self.index)

    def of(self, features: Features) -> Rows:
        """All rows of other features, standardised as these are."""
        return replace(self, features=features, index=torch.arange(len(features.y)))

    def only(self, index: Sequence[int]) -> Rows:
        """Some of all rows."""
        return replace(self, index=torch.tensor(index, dtype=torch.int64))

    def part(self, places: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Read x B×(D + 1), float32, and labels B, both on the device."""
        rows = self.index[places]
        x = (self.features.x[rows].to(self.device).float() - self.mean) / self.std
        return torch.cat([x, torch.ones(len(x), 1, device=self.device)], dim=1), self.features.y[rows].to(self.device)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read all of them, in order."""
        for first in range(0, len(self), ROWS):
            yield self.part(slice(first, first + ROWS))


def right(rows: Rows, weights: Tensor) -> Tensor:
    """Return the share of rows that each of G regressions, weights G×(D + 1)×C, gets right: G, float64.

    One whose scores are not finite gets none right.
    """
    found = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    for x, y in rows.parts():
        for n, weight in enumerate(weights):
            scores = x @ weight
            finite = scores.isfinite().all(dim=1)
            found[n] += ((scores.argmax(dim=1) == y) & finite).sum()
    return found.cpu() / len(rows)
