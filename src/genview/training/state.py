"""What a training must keep to continue as if nothing had happened."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from genview.errors import UserError
from genview.generators.lesson import Lesson
from genview.store import write_state
from genview.training.average import MovingAverage

Trained = TypeVar("Trained", bound=nn.Module)
"""A method's learner, or what an evaluation trains."""


class Scaler(Protocol):
    """Keeps the factor by which float16 losses are scaled; nothing for other precisions."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        ...


@dataclass
class TrainState(Generic[Trained]):
    """Learner, optimizer, loss scale and the number of steps taken.

    Nothing random needs keeping: order and augmentation follow from seed, epoch and key, and what layers draw
    (stochastic depth) from seed and step. Slow copies, queues and centres are the learner's.
    """

    learner: Trained
    optimizer: torch.optim.Optimizer
    scaler: Scaler
    step: int = 0

    def save(self, path: Path) -> None:
        """Write to `path`, all or nothing."""
        content = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }
        write_state(path, content)

    def load(self, path: Path, device: torch.device) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged or of another learner.
        """
        with continuing(path):
            content = torch.load(path, map_location=device, weights_only=True)
            self.learner.load_state_dict(content["learner"])
            self.optimizer.load_state_dict(content["optimizer"])
            if content["scaler"]:  # a run may go on in another precision
                self.scaler.load_state_dict(content["scaler"])
            self.step = int(content["step"])


@dataclass
class LessonState:
    """The same of a generator's training; `total` is the sum of the losses of `counted` steps not yet measured."""

    lesson: Lesson
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    step: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    counted: int = 0

    def save(self, path: Path) -> None:
        """Write to `path`, all or nothing."""
        content = {
            "lesson": self.lesson.kept(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "step": self.step,
            "total": self.total,
            "counted": self.counted,
        }
        write_state(path, content)

    def load(self, path: Path, device: torch.device) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged or of another lesson.
        """
        with continuing(path):
            content = torch.load(path, map_location=device, weights_only=True)
            if content["lesson"].keys() != self.lesson.kept().keys():
                raise ValueError("its weights have other names")
            self.lesson.load_state_dict({**self.lesson.state_dict(), **content["lesson"]})
            self.optimizer.load_state_dict(content["optimizer"])
            self.average.load_state_dict(content["average"])
            self.step, self.total, self.counted = int(content["step"]), content["total"], int(content["counted"])


@contextmanager
def continuing(path: Path) -> Iterator[None]:
    """Turn what goes wrong when a checkpoint is read into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The checkpoint {path} cannot be continued: it is damaged or of another learner ({_short(error)}). "
            "Delete it to start anew."
        ) from error


def _short(error: Exception) -> str:
    """First line of an error, which torch makes long."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
