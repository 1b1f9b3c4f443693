"""Supervised training of something with a pretrained backbone in it: the one loop of all evaluations that train."""

from __future__ import annotations

import time
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genview.errors import UserError
from genview.evaluation.augmented import Augmented, Example, together
from genview.evaluation.features import Reading
from genview.evaluation.options import duration, want_text
from genview.images import ImageSource
from genview.images.order import positions
from genview.images.source import silent
from genview.seeds import seed_of
from genview.store import sweep
from genview.training.devices import alone
from genview.training.duration import steps_of
from genview.training.interrupt import Interruption
from genview.training.loop import seed_layers
from genview.training.optimizer import Optimizer, grouped, schedule
from genview.training.state import TrainState

DROPS = (0.6, 0.8)
"""Shares of a training after each of which a stepped rate is divided by ten (He et al., MoCo, section 4.1)."""
STATE = "training.pt"
"""The state of a training that is not finished, in the evaluation's folder."""
PAUSE = 60.0
"""Seconds between states that are kept, at least: an epoch on few images takes less than writing a large backbone."""


@dataclass(frozen=True)
class Supervised:
    """How an evaluation trains.

    `length` and `warmup` are durations such as '90 epochs'; a batch is at most all images. Rates follow half a
    cosine to zero, or, with `schedule` 'step', are divided by ten after 60 % and 80 % of the training.
    `smallest_crop` (a share of the area) and `flip` (a probability) are the augmentation. To be scored, an image is
    resized so that its shortest side is the size over `crop`, and the middle is cut out: 0.875 is 224 of 256.
    `precision` 'auto' is bfloat16 on GPUs that have it, else float32.

    Raises:
        UserError: a duration is none, or a number, also of a subclass's, is out of its range.
    """

    protocol: ClassVar[str]

    kind: str = ""
    length: str = "90 epochs"
    warmup: str = "0 epochs"
    schedule: Literal["cosine", "step"] = "cosine"
    batch: int = 256
    weight_decay: float = 0.0
    smallest_crop: float = 0.08
    flip: float = 0.5
    crop: float = 0.875
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        want_text(self.kind, self, duration, "length", "warmup")
        if not (self.batch >= 1 and 0 < self.crop <= 1 and 0 < self.smallest_crop <= 1 and 0 <= self.flip <= 1):
            raise UserError(
                f"Evaluation {self.kind} needs a batch of at least 1, crop and smallest_crop above 0 and at most 1, "
                f"and flip from 0 to 1: they are {self.batch}, {self.crop}, {self.smallest_crop} and {self.flip}."
            )


class Taught(nn.Module, ABC):
    """What is trained: `forward(batch, step)` returns the losses of the H heads in it that learn by themselves (H).

    A batch's `pixels` are floats in [0, 1] there. `trained` is the part that learns, and is kept to be continued.
    """

    trained: nn.Module
    forward: Callable[..., Tensor]


@dataclass(frozen=True)
class Course:
    """One training: who is taught, on which images, how, and where its state is kept.

    `scales` are factors of the optimizer's rate by `id` of the parameter; see `training.optimizer.grouped`.
    `name` is what it is called when it is told of.
    """

    name: str
    taught: Taught
    source: ImageSource
    settings: Supervised
    optimizer: Optimizer
    steps: int
    reading: Reading
    seed: int
    folder: Path
    scales: Mapping[int, float] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Images in a step."""
        return min(self.settings.batch, len(self.source))

    def run(self) -> Fabric:
        """Take all steps, from the state in the folder where there is one; return what knows device and precision.

        On CPUs, a training that was killed and goes on ends as if it had not been, to the bit.

        Raises:
            UserError: settings cannot work, a loss is not finite, an image or the state cannot be read, or the disk
                is full.
        """
        if not self.warmup < self.steps:
            raise UserError(
                f"Evaluation {self.settings.kind} has a warmup of {self.settings.warmup}, as long as its training of "
                f"{self.settings.length}: lengthen the one, or shorten the other."
            )
        fabric = alone(self.reading.device, self.settings.precision)
        self.taught.to(fabric.device).to(memory_format=torch.channels_last)
        optimizer = self.optimizer.of(grouped(self.taught.trained.parameters(), self.optimizer, self.scales))
        state = TrainState(self.taught.trained, optimizer, fabric.strategy.precision)
        sweep(self.folder)
        if self.kept.exists():
            state.load(self.kept, fabric.device)
        _Loop(self, fabric, state, *fabric.setup(self.taught, optimizer)).run_through()
        return fabric

    @property
    def warmup(self) -> int:
        """Steps in which the rate rises."""
        return steps_for(self.settings.warmup, len(self.source), self.batch)

    @property
    def kept(self) -> Path:
        """Where the state is."""
        return self.folder / STATE


class _Loop:
    """One run through the steps that are left."""

    def __init__(
        self,
        course: Course,
        fabric: Fabric,
        state: TrainState[nn.Module],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.course, self.fabric, self.state, self.module, self.optimizer = course, fabric, state, module, optimizer
        self.saved = time.monotonic()

    def run_through(self) -> None:
        course, tell = self.course, self.course.reading.tell or silent
        self.module.train()
        before: Tensor | None = None
        with Interruption() as interruption:
            for batch in interruption.until_asked(self._batches()):
                losses = self._step(batch)
                self._keep(losses)
                if before is not None:  # a look at the present losses would make the processor wait for the device
                    tell(course.name, self.state.step, course.steps, f"loss {self._checked(before, 1):.4f}")
                before = losses
            if interruption.asked:
                self._stop(before)

    def _step(self, batch: Example) -> Tensor:
        course, step, device = self.course, self.state.step, self.fabric.device
        seed_layers(seed_of(course.seed, "", step, "layers"))
        self._set_rates()
        images = (
            batch.pixels.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last).div_(255)
        )
        own = batch._replace(pixels=images, label=batch.label.to(device), row=batch.row.to(device), unreadable=())
        losses: Tensor = self.module(own, step)
        self.fabric.backward(losses.sum())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = step + 1
        return losses.detach()

    def _set_rates(self) -> None:
        course, step = self.course, self.state.step
        schedule(self.optimizer, course.optimizer, step, steps=course.steps, warmup=course.warmup)
        if course.settings.schedule == "step" and step >= course.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = course.optimizer.rate * group["scale"] * stepped(step, course.steps)

    def _keep(self, losses: Tensor) -> None:
        """Save at the end of an epoch, unless that was done a moment ago, and at the end of the training."""
        epoch, last = len(self.course.source) // self.course.batch, self.state.step == self.course.steps
        late = time.monotonic() - self.saved >= PAUSE
        if last or (late and self.state.step % epoch == 0):
            self._save(losses)

    def _save(self, losses: Tensor) -> None:
        self._checked(losses, 0)
        self.state.save(self.course.kept)
        self.saved = time.monotonic()

    def _stop(self, last: Tensor | None) -> None:
        """Save what is reached, and stop."""
        if last is not None:
            self._save(last)
        raise KeyboardInterrupt

    def _checked(self, losses: Tensor, ago: int) -> float:
        """Return the smallest of the losses, once it is sure that there is one: a head that diverged has lost."""
        finite = losses[torch.isfinite(losses)]
        if not len(finite):
            raise UserError(
                f"{self.course.name}: the loss is not finite at step {self.state.step - ago} of {self.course.steps}. "
                f"Lower the rates of evaluation {self.course.settings.kind}, lengthen its warmup, or set its "
                "precision to float32."
            )
        return float(finite.min())

    def _batches(self) -> Iterator[Example]:
        course, settings = self.course, self.course.settings
        loader: DataLoader[Example] = DataLoader(
            Augmented(course.source, course.reading.size, settings.smallest_crop, settings.flip, course.seed),
            batch_sampler=positions(
                len(course.source),
                course.batch,
                first=self.state.step,
                last=course.steps,
                seed=course.seed,
                rank=0,
                world=1,
            ),  # positions are (epoch, index) and need no length
            collate_fn=together,
            num_workers=course.reading.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )
        for batch in loader:
            for key, reason in batch.unreadable:
                set_aside(course.reading, key, reason)
            yield batch


def set_aside(reading: Reading, key: str, reason: str) -> None:
    """Report an image that cannot be read.

    Raises:
        UserError: there is nobody to report it to.
    """
    if reading.unreadable is None:
        raise UserError(f"The image '{key}' cannot be used: {reason}.")
    reading.unreadable(key, reason)


def steps_for(duration: str, images: int, batch: int) -> int:
    """Return a duration in steps; a batch is at most all images.

    Raises:
        UserError: the text is no duration.
    """
    return steps_of(duration, images=images, batch=min(batch, images))


def stepped(step: int, steps: int) -> float:
    """Share of the full rate at step `step` (from 0) of a training whose rate is divided by ten now and then."""
    return 0.1 ** sum(step >= share * steps for share in DROPS)
