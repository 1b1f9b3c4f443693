"""What a method is: numbers in a frozen dataclass that build a learner giving one loss per pair."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from genview.encoders.backbone import Backbone

Takes = Literal["pair", "crops", "many"]
"""'pair': two views. 'crops': two views, then any number of smaller ones. 'many': two or more views of one size."""


class Losses(NamedTuple):
    """A loss that is not for pairs alone: losses of pairs, which weights multiply, and one of the whole batch.

    `pairs` is None where no part of the loss belongs to one pair; such a learner is not `weighable`.
    """

    pairs: Tensor | None
    batch: Tensor


class Learner(nn.Module, ABC):
    """A backbone with what a method puts around it.

    `forward(a, b)` takes two views, each B×3×H×W in [0, 1], and returns one loss for each pair: B values, or
    `Losses`. The loop alone multiplies by weights and averages. Learners that take more than a pair get further
    views as further arguments; those that take many return B×P losses, one for each of the P pairs of views, in
    the order of `itertools.combinations`.

    What moves slowly (copies, queues, centres) moves in `after_step`, so accumulation and evaluation see `forward`
    without side effects on weights.
    """

    backbone: Backbone
    forward: Callable[..., Tensor | Losses]
    takes: ClassVar[Takes] = "pair"
    weighable: ClassVar[bool] = True
    """Whether the loss has parts that belong to one pair each."""
    divisible: ClassVar[bool] = False
    """Whether the loss of a pair looks at no other pair of the batch, BatchNorm apart: parts may be accumulated."""

    def before_step(self, progress: float) -> None:
        """Mend gradients; called after the backward pass of each step, `progress` in [0, 1) being the share done."""

    def after_step(self, progress: float) -> None:
        """Move the slow parts; called once after each optimizer step, `progress` in (0, 1]."""

    def fixed_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate stays at its first value while the others follow the schedule."""
        return []

    def measures(self) -> dict[str, float]:
        """What of the method's own changes and is worth a curve, by name: momentum, teacher temperature."""
        return {}
