"""Signs of how a training fares that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_ROWS = 256
"""Images whose features RankMe looks at: bounds the time of its decomposition to milliseconds."""


def feature_std(features: Tensor) -> float:
    """Collapse monitor: standard deviation of unit-length features B×D over the batch, times √D.

    Near 1 when features spread in all directions, 0 when all images have the same one (SimSiam, section 4.1).
    """
    unit = F.normalize(features.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def rank_me(features: Tensor) -> float:
    """Effective rank of features B×D (Garrido et al., RankMe, ICML 2023, eq. 1): exp of the entropy of the
    singular values taken as shares; from 1 (all features on a line) to min(B, D), of the first `MOST_ROWS` rows.
    """
    x = features[:MOST_ROWS].double()
    if x.shape[1] > x.shape[0]:
        x = x.T
    values = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def tails(losses: Tensor) -> tuple[float, float]:
    """5 % and 95 % quantiles of the losses of pairs: a few pairs may go wrong that the mean does not show."""
    low, high = torch.quantile(losses.float().flatten(), torch.tensor([0.05, 0.95], device=losses.device))
    return float(low), float(high)
