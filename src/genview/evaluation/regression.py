"""Logistic regression on features as other evaluations use it: fitted once, then asked about other images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genview.evaluation.features import Features, stratified
from genview.evaluation.linear import fitted

Measure = Callable[[Tensor, Tensor], float]
"""Predicted and true labels, N each → how good that is, in [0, 1]."""


@dataclass(frozen=True)
class Regression:
    """Features N×D, standardised with `mean` and `std` D, times `weight` D+1×C, the last row being the bias."""

    mean: Tensor
    std: Tensor
    weight: Tensor

    def predicted(self, x: Tensor) -> Tensor:
        """Return the labels N of features N×D."""
        return ((x - self.mean) / self.std @ self.weight[:-1] + self.weight[-1]).argmax(dim=1)


def regression(train: Features, classes: int, l2: float, iterations: int) -> Regression:
    """Standardise and fit; see `linear.fitted`."""
    mean, std = train.x.mean(dim=0), train.x.std(dim=0, correction=0) + 1e-6
    return Regression(mean, std, fitted(Features((train.x - mean) / std, train.y), classes, l2, iterations))


def chosen(
    train: Features, held: Features, classes: int, strengths: Sequence[float], iterations: int, measure: Measure
) -> float:
    """Return the L2 strength with which a regression on `train` is best on `held`; of equal ones the first."""
    if len(strengths) == 1 or not len(held.y):
        return strengths[-1]
    return max(
        strengths,
        key=lambda l2: measure(regression(train, classes, l2, iterations).predicted(held.x), held.y),
    )


def halved(train: Features, share: float, seed: int) -> tuple[Features, Features]:
    """Split features so that the second part has `share` of each class."""
    own, held = (Features(train.x[rows], train.y[rows]) for rows in stratified(train.y, share, seed))
    return own, held


def top1(predicted: Tensor, y: Tensor) -> float:
    """Share of images that are right."""
    return float((predicted == y).double().mean())


def mean_per_class(predicted: Tensor, y: Tensor) -> float:
    """Mean over the classes that occur of the share of their images that are right."""
    right = torch.zeros(int(y.max()) + 1, dtype=torch.float64).index_add_(0, y, (predicted == y).double())
    count = y.bincount()
    return float((right[count > 0] / count[count > 0]).mean())
