"""The Fréchet distance between two sets of images, in any features."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """|μa − μb|² + tr(Ca + Cb − 2 (Ca Cb)^½) of features N×D and M×D (Heusel et al., 2017), in float64.

    The product of two covariances is not symmetric, but it has the eigenvalues of Ca^½ Cb Ca^½, which is; so both
    roots come from eigendecompositions that stay real where a covariance is singular. Few samples make the distance
    too large, by about c / N (Chong & Forsyth, 2020): compare it with that of as many real images. NaN where a set
    has fewer than two.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    (mean, spread), (other_mean, other) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(spread)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    between = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    found = (mean - other_mean).square().sum() + spread.trace() + other.trace() - 2 * between
    return max(0.0, float(found))  # rounding leaves a little less than nothing between equal sets


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(dim=0), torch.atleast_2d(torch.cov(features.T))
