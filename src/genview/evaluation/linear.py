"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features, stratified
from genview.evaluation.subject import Subject


@dataclass(frozen=True)
class Linear:
    """Full-batch L-BFGS on standardised features, the L2 strength chosen on a part of the *training* images.

    Each of `l2` multiplies half the squared weights in the mean loss. The best one on `held` of the training
    images is taken, and the regression is fitted again on all of them. Test images play no part in any choice.
    """

    kind: Literal["linear"] = "linear"
    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    held: float = 0.1
    iterations: int = 200

    protocol: ClassVar[str] = "linear-1"

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('linear/top1', share of test images that are right)."""
        yield from self.on(*subject.features, subject.seed)

    def on(self, train: Features, test: Features, seed: int) -> Iterator[tuple[str, float]]:
        """Yield the same from features."""
        mean, std = train.x.mean(dim=0), train.x.std(dim=0, correction=0) + 1e-6
        train, test = (Features((part.x - mean) / std, part.y) for part in (train, test))
        classes = int(torch.cat([train.y, test.y]).max()) + 1
        best = self._best(train, classes, seed)
        yield "linear/top1", accuracy(fitted(train, classes, best, self.iterations), test)

    def _best(self, train: Features, classes: int, seed: int) -> float:
        own, held = (Features(train.x[rows], train.y[rows]) for rows in stratified(train.y, self.held, seed))
        if not len(held.y) or len(self.l2) == 1:
            return self.l2[-1]
        return max(self.l2, key=lambda l2: accuracy(fitted(own, classes, l2, self.iterations), held))


def fitted(train: Features, classes: int, l2: float, iterations: int) -> Tensor:
    """Minimise mean cross-entropy + l2/2 · |W|² (bias free); return W and bias as D+1×classes."""
    x = torch.cat([train.x, torch.ones(len(train.x), 1)], dim=1)
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight, train.y) + l2 / 2 * weight[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


def accuracy(weight: Tensor, test: Features) -> float:
    """Share of images that the regression gets right."""
    scores = test.x @ weight[:-1] + weight[-1]
    return float((scores.argmax(dim=1) == test.y).float().mean())
