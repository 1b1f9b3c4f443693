"""The batch that a trial finds, on a device whose memory and speed are made up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from echo import Echo
from genview.errors import UserError
from genview.generators import Text
from genview.generators.trial import MOST, ON_CPU, batch_for, trial


class Costly(Echo):
    """Takes the time that `seconds` says of a batch, by a clock of its own; more than `most` rows do not fit."""

    def __init__(self, most: int, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.most, self.seconds, self.clock = most, seconds, 0.0
        self.seen: list[int] = []

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        if len(condition) > self.most:
            raise torch.OutOfMemoryError("made so")
        self.seen.append(len(condition))
        self.clock += self.seconds(len(condition))
        return super().sample(condition, level, guidance, seeds, texts)


def found(generator: Costly, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(time, "perf_counter", lambda: generator.clock)
    return batch_for(generator, "auto", "cuda")


@pytest.mark.parametrize(
    ("most", "seconds", "batch"),
    [
        (1000, lambda rows: 1.0 + 0.1 * rows, MOST),  # a row takes 1.1, 0.6, 0.35, … and at last 0.116 s
        (1000, lambda rows: 1.0 + rows, 16),  # 2, 1.5, 1.25, 1.125, 1.0625, and 1.03 is not 5 % less
        (10, lambda rows: 1.0 + 0.1 * rows, 8),
        (1, float, 1),
        (1000, float, 1),
    ],
    ids=["as far as is tried", "until it pays no more", "until it fits no more", "one alone fits", "no gain at all"],
)
def test_batches_are_doubled_as_long_as_they_fit_and_pay(
    most: int, seconds: Callable[[int], float], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(Costly(most, seconds), monkeypatch) == batch


def test_not_even_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Not even one view"):
        found(Costly(0, float), monkeypatch)


def test_what_is_asked_for_is_taken_and_a_cpu_is_not_tried() -> None:
    generator = Costly(0, float)
    assert batch_for(generator, 7, "cuda") == 7
    assert batch_for(generator, "auto", "cpu") == ON_CPU
    assert generator.seen == []


def test_a_trial_measures_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([100.0, 6.0])
    generator = Costly(10, lambda _rows: next(costs))
    monkeypatch.setattr(time, "perf_counter", lambda: generator.clock)
    measured = trial(generator, torch.rand(3, 4), 1.0, lambda view: bytes(view.shape[0]))
    assert (measured.seconds, measured.bytes) == (2.0, 3.0)
    assert generator.seen == [3, 3]
