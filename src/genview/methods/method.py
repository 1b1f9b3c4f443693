"""What a method is: numbers in a frozen dataclass that build a learner giving one loss per pair."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from genview.encoders.backbone import Backbone


class Learner(nn.Module, ABC):
    """A backbone with what a method puts around it.

    `forward` states the method and returns one loss for each pair; the loop alone multiplies by weights and
    averages. What moves slowly (copies, queues) moves in `after_step`, so accumulation and evaluation see
    `forward` without side effects.
    """

    backbone: Backbone

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two views B×3×H×W in [0, 1] → losses B."""

    def after_step(self, progress: float) -> None:
        """Move the slow parts; called once after each optimizer step, `progress` in (0, 1]."""

    def fixed_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate stays at its first value while the others follow the schedule."""
        return []
