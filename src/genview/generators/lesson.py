"""What a training of a generator goes through: a module that turns images into losses, and how long and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genview.distributed import own_rows
from genview.generators.generator import Generator


@dataclass(frozen=True)
class LessonSettings:
    """How a generator is trained; `training.fit` does it.

    Windows of size×size pixels are cut from images scaled by a random factor between 1 and `zoom`, never above their
    own resolution, so that one network serves several sizes. `code_from` of them are shown before the first step.
    `samples` counts windows, `batch` is over all processes.
    The learning rate rises to `rate` over `warmup` steps and falls linearly to 0 over the second half. `average`
    bounds the decay of the weights' moving average, `clip` the norm of the gradient.
    `precision` 'auto' is bfloat16 on GPUs that have it, else float32; CPUs that have AMX or AVX-512 BF16 are faster
    in bfloat16, too.
    `devices` counts the processes of this machine, each with a device of its own; 'auto' is every GPU, or one
    process on CPUs. Under torchrun its processes are used instead.
    `held_out` images (at most a hundredth, at least a few) are not trained on: every `sample_every` steps views are
    drawn of them and scored. `log` writes the measures to TensorBoard or Weights & Biases as well.
    """

    size: int = 32
    zoom: float = 2.0
    flip: float = 0.5
    code_from: int = 4096
    samples: int = 300_000
    batch: int = 64
    rate: float = 7e-4
    warmup: int = 200
    average: float = 0.9995
    clip: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    device: str = "auto"
    devices: int | Literal["auto"] = "auto"
    workers: int = 1
    held_out: int = 64
    save_every: int = 1000
    sample_every: int = 1000
    measure_every: int = 50
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()

    @property
    def steps(self) -> int:
        """Length of the training in optimizer steps."""
        return max(1, self.samples // self.batch)


class Lesson(nn.Module, ABC):
    """A module whose forward takes images B×3×S×S in [0, 1] and returns losses B.

    Trained are the parameters that require a gradient; the loop alone averages losses and weights. What `forward`
    draws at random it draws with `distributed.own_rows` from torch's generators, which the loop seeds at each step:
    so neither the number of processes nor an interruption changes anything.
    """

    forward: Callable[[Tensor], Tensor]
    last_file: ClassVar[str] = "model_index.json"
    """The file of the result whose presence says that the training is finished."""

    def prepare(self, windows: Iterable[Tensor]) -> None:
        """Look at images, batches B×3×S×S in [0, 1], before the first step of a training; nothing to do here."""

    def compiled_parts(self) -> list[nn.Module]:
        """Modules that are worth compiling."""
        return []

    def kept(self) -> dict[str, Tensor]:
        """Return the part of the state that a checkpoint keeps: all of it, where a lesson knows no better."""
        return self.state_dict()

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the result as it would be finished now; the lesson itself stays as it is.

        Raises:
            UserError: the disk is full.
        """

    def generator(self, folder: Path, device: torch.device) -> Generator | None:  # noqa: ARG002 - for others
        """Load what `save` wrote as a user would, to draw samples; None where this takes too much."""
        return None


def normal_like(x: Tensor) -> Tensor:
    """Draw standard normal noise of the shape of x; see `own_rows`."""
    return own_rows(lambda rows: torch.randn(rows, *x.shape[1:], dtype=x.dtype, device=x.device), len(x))


def uniform(count: int, device: torch.device) -> Tensor:
    """Draw `count` numbers in [0, 1); see `own_rows`."""
    return own_rows(lambda rows: torch.rand(rows, device=device), count)


def below(last: int, count: int, device: torch.device) -> Tensor:
    """Draw `count` integers from 0 to last - 1; see `own_rows`."""
    return own_rows(lambda rows: torch.randint(0, last, (rows,), device=device), count)
