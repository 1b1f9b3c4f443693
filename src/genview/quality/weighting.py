"""From the quality of pairs to their weights: pure numbers, wherever the quality comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from genview.distributed import gathered, global_sum
from genview.errors import UserError

HIGHEST_GAMMA = 40.0
"""exp(2γ) must be a float32."""


@dataclass(frozen=True)
class Weighting:
    """w = N exp(γ q) / Σ exp(γ q): mean one over the N pairs of the global batch (GenView, section 3.3).

    `gamma` goes linearly to `gamma_end` over the training where that is given. Before `start` every weight is one: a
    share of the training, or a duration such as '16 epochs', which `begun` makes a share. `clip` (lowest, highest)
    bounds the weights, which then get mean one again. Only the share `keep` of the pairs, those of highest quality,
    has a weight at all. `per_process` takes N, sums and shares within each process, as the authors' code does.

    Raises:
        UserError: a number is out of its range.
    """

    gamma: float = 1.0
    gamma_end: float | None = None
    start: float | str = 0.0
    clip: tuple[float, float] | None = None
    keep: float = 1.0
    per_process: bool = False

    def __post_init__(self) -> None:
        if not all(abs(gamma) <= HIGHEST_GAMMA for gamma in (self.gamma, self.gamma_end or 0.0)):
            raise UserError(f"quality.gamma and gamma_end lie between −{HIGHEST_GAMMA:g} and {HIGHEST_GAMMA:g}.")
        if not 0 < self.keep <= 1:
            raise UserError(
                f"quality.keep is the share of pairs that keep a weight, above 0 and up to 1: {self.keep}."
            )
        if not isinstance(self.start, str) and not 0 <= self.start <= 1:
            raise UserError(f"quality.start is a share of the training, from 0 to 1, not {self.start}.")
        if self.clip is not None and not 0 <= self.clip[0] <= 1 <= self.clip[1]:
            raise UserError(f"quality.clip is (lowest, highest) with 0 ≤ lowest ≤ 1 ≤ highest, not {self.clip}.")

    def begun(self, share: Callable[[str], float]) -> Self:
        """Return it with a `start` that is a share; `share` makes one of a duration."""
        return replace(self, start=min(1.0, share(self.start))) if isinstance(self.start, str) else self

    def gamma_at(self, progress: float) -> float:
        """γ when the share `progress` of the training is done."""
        return self.gamma if self.gamma_end is None else self.gamma + progress * (self.gamma_end - self.gamma)

    def weights(self, quality: Tensor, progress: float = 0.0) -> Tensor:
        """Return the weights of pairs of any shape from their q in [−2, 2], in float32.

        Where pairs tie at the edge of the share `keep`, all of them keep their weights. With `keep`, the bounds of
        `clip` belong to weights whose mean over the kept pairs is one.
        """
        q = quality.float()
        if progress < float(self.start):
            return torch.ones_like(q)
        kept = self._kept(q)
        weight = torch.exp(self.gamma_at(progress) * q) * kept
        if self.clip is not None:
            weight = self._mean_one(weight, kept).clamp(*self.clip) * kept
        return self._mean_one(weight, torch.ones_like(q))

    def _kept(self, q: Tensor) -> Tensor:
        """Ones where q is among the share `keep` of the highest, zeros elsewhere."""
        if self.keep == 1:
            return torch.ones_like(q)
        every = q.flatten() if self.per_process else gathered(q.flatten())
        least = every.topk(max(1, round(self.keep * len(every)))).values[-1]
        return (q >= least).float()

    def _mean_one(self, weight: Tensor, counted: Tensor) -> Tensor:
        """Scale weights so that their mean over the pairs `counted`, ones or zeros, is one."""
        sums = torch.stack([weight.sum(), counted.sum()])
        total, count = sums if self.per_process else global_sum(sums)
        evened: Tensor = weight * count / total
        return evened
