"""Which side of the direction is foreground: decided by where the tokens lie, not by looking at pictures."""

from __future__ import annotations

import torch
from torch import Tensor


class CentrePrior:
    """Photographers put their subject into the middle, and the ground reaches the border.

    For every image the mean score of the central half of the grid is compared with that of the border. The side
    on which the centre lies, on average over the sample, is foreground. `evidence` is the t-statistic of that
    mean over the images: its size says how sure the rule is; below about 3 look at the maps on the page. A grid
    of fewer than 3×3 tokens has no border to compare with: the evidence is then 0 and the sign stays as it is.

    The other plain rule, that foreground is the minority (the sign of the scores' skewness), picked the wrong side
    of the embedded encoder's direction in 98 of 100 samples of photographs with hand-drawn masks, where this one
    was right in all of them; `benchmarks/foreground_masks.py` measures both.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        self.centre = central(grid)
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, scores: Tensor) -> None:
        """Take scores B×N."""
        if bool(self.centre.all()):
            return
        found = scores.double().cpu()
        difference = found[:, self.centre].mean(dim=1) - found[:, ~self.centre].mean(dim=1)
        self.count += len(difference)
        self.sum += float(difference.sum())
        self.squares += float(difference.square().sum())

    def decide(self) -> tuple[int, float]:
        """Return the sign (1: high scores are foreground, −1: low ones), and the evidence, positive for 1."""
        if self.count == 0:
            return 1, 0.0
        mean = self.sum / self.count
        variance = max(self.squares / self.count - mean**2, 1e-30)
        return (1 if mean >= 0 else -1), mean / (variance / self.count) ** 0.5


def central(grid: tuple[int, int]) -> Tensor:
    """Mask N of the tokens in the middle half of both axes."""
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5).abs() < 0.25 + 1e-6 for side in grid)
    return (rows[:, None] & columns[None, :]).flatten()
