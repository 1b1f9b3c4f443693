"""Linear probe: multinomial logistic regression on frozen features, by L-BFGS and by a grid of SGD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features, Tell, stratified
from genview.evaluation.options import COUNT, NOT_NEGATIVE, POSITIVE, want, want_some
from genview.evaluation.rows import ROWS, Rows, right
from genview.evaluation.sgd import Choice, Course
from genview.evaluation.subject import Subject
from genview.images.source import silent


@dataclass(frozen=True)
class Linear:
    """Two fits of the same model on standardised features; what both leave open is chosen on training images.

    The first is full-batch L-BFGS. Each of `l2` multiplies half the squared weights in the mean loss. The best one
    on `held` of the training images is taken, and the regression is fitted again on all of them.

    The second is SGD with `momentum` over `epochs` in batches of `batch`, the rate falling to zero along half a
    cosine. Every one of `rates` is taken with every one of `decays`, all trained at once as one matrix; the pair
    that is best on the held-out part is trained again on all training images.

    Where `l2` or `rates` is empty, that fit is left out. Test images play no part in any choice.

    Raises:
        UserError: both are empty, `rates` are given without `decays`, or a number is out of its range.
    """

    kind: Literal["linear"] = "linear"
    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    held: float = 0.1
    iterations: int = 200
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    decays: tuple[float, ...] = (0.0, 1e-4, 1e-2)
    epochs: int = 50
    batch: int = 256
    momentum: float = 0.9
    protocol: ClassVar[str] = "linear-1"

    def __post_init__(self) -> None:
        want_some(self.kind, self, "l2", "rates")
        if self.rates:
            want_some(self.kind, self, "decays")
        want(self.kind, self, NOT_NEGATIVE, "l2", "decays")
        want(self.kind, self, POSITIVE, "rates")
        want(self.kind, self, COUNT, "iterations", "epochs", "batch")

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('linear/top1', share of test images that are right) by L-BFGS, then ('linear/sgd-top1', …)."""
        reading = subject.reading
        yield from self.on(*subject.features, subject.seed, reading.device, reading.tell or silent)

    def on(
        self, train: Features, test: Features, seed: int, device: str = "cpu", tell: Tell = silent
    ) -> Iterator[tuple[str, float]]:
        """Yield the same from features."""
        classes = int(torch.cat([train.y, test.y]).max()) + 1
        rows = Rows.standardised(train, device)
        own, held = (rows.only(index) for index in stratified(train.y, self.held, seed))
        if self.l2:
            weight = fitted(rows, classes, self._best(own, held, classes), self.iterations)
            yield "linear/top1", accuracy(rows.of(test), weight)
        if self.rates:
            course = Course(self.epochs, self.batch, self.momentum, seed, tell)
            choice = self._choice(own, held, classes, course)
            yield "linear/sgd-top1", accuracy(rows.of(test), course.trained(rows, classes, [choice])[0])

    def _best(self, own: Rows, held: Rows, classes: int) -> float:
        if not len(held) or len(self.l2) == 1:
            return self.l2[-1]
        return max(self.l2, key=lambda l2: accuracy(held, fitted(own, classes, l2, self.iterations)))

    def _choice(self, own: Rows, held: Rows, classes: int, course: Course) -> Choice:
        """The best rate and decay on the held-out part; of equal ones the first. One that diverges is never right."""
        grid = [Choice(rate, decay) for rate in self.rates for decay in self.decays]
        if not len(held) or len(grid) == 1:
            return grid[0]
        return grid[int(right(held, course.trained(own, classes, grid)).argmax())]


def fitted(rows: Rows, classes: int, l2: float, iterations: int) -> Tensor:
    """Minimise mean cross-entropy + l2/2 · |W|² (bias free); return W and bias as D+1×classes."""
    weight = torch.zeros(len(rows.mean) + 1, classes, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe")
    small = list(rows.parts()) if len(rows) <= ROWS else None

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = l2 / 2 * weight[:-1].square().sum()
        value.backward()
        total = value.detach()
        for x, y in small or rows.parts():
            part = F.cross_entropy(x @ weight, y, reduction="sum") / len(rows)
            part.backward()
            total += part.detach()
        return total

    optimizer.step(loss)
    return weight.detach()


def accuracy(rows: Rows, weight: Tensor) -> float:
    """Share of rows that a regression gets right."""
    return float(right(rows, weight[None])[0])
