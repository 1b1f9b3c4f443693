"""Logistic regression on features as other evaluations use it: fitted once, then asked about other images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genview.evaluation.features import Features, stratified
from genview.evaluation.linear import fitted
from genview.evaluation.rows import Rows

Measure = Callable[[Tensor, Tensor], float]
"""Predicted and true labels, N each → how good that is, in [0, 1]."""


@dataclass(frozen=True)
class Regression:
    """What was fitted: `weight` (D + 1)×C for features that are standardised as `rows` are."""

    rows: Rows
    weight: Tensor

    def predicted(self, features: Features) -> Tensor:
        """Return the labels N of features, on the CPU."""
        return torch.cat([(x @ self.weight).argmax(dim=1).cpu() for x, _ in self.rows.of(features).parts()])

    def score(self, features: Features, measure: Measure) -> float:
        """Return how good the labels of features are."""
        return measure(self.predicted(features), features.y)


@dataclass(frozen=True)
class Regressing:
    """How regressions are fitted: strengths to choose from, iterations of L-BFGS, and what makes one the best."""

    l2: Sequence[float]
    iterations: int
    measure: Measure
    device: str = "cpu"

    def fit(self, train: Features, classes: int, l2: float) -> Regression:
        """Standardise and fit; see `linear.fitted`."""
        rows = Rows.standardised(train, self.device)
        return Regression(rows, fitted(rows, classes, l2, self.iterations))

    def chosen(self, train: Features, held: Features, classes: int) -> float:
        """Return the strength with which a regression on `train` is best on `held`; of equal ones the first."""
        if len(self.l2) == 1 or not len(held.y):
            return self.l2[-1]
        return max(self.l2, key=lambda l2: self.fit(train, classes, l2).score(held, self.measure))


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
