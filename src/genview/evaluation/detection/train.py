"""Training a detector: SGD with warm-up and drops, continuing from its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from genview.errors import UserError
from genview.evaluation.detection.data import Example, Objects, Target
from genview.evaluation.features import Reading
from genview.images.order import positions
from genview.seeds import seed_of
from genview.store import sweep, write_state
from genview.training.duration import steps_of
from genview.training.interrupt import Interruption
from genview.training.state import continuing

FIRST = 0.001
"""Of the rate, at the first step of the warm-up."""
KEPT_EVERY = 1000
"""Steps between checkpoints, at most: minutes of work on a GPU."""
UNREADABLE = 100
"""Images in a row that cannot be used, after which none is expected to be."""


class Schedule(Protocol):
    """What settings say of a detector's training; see `Detection`."""

    @property
    def length(self) -> str: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def momentum(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102
    @property
    def drops(self) -> tuple[float, ...]: ...  # noqa: D102


def rate_at(step: int, steps: int, settings: Schedule) -> float:
    """Return the rate of a step, counted from 0: a linear warm-up, then a tenth after each of `drops`.

    The warm-up takes `warmup` steps, or a tenth of the schedule where that is less.
    """
    warmup = min(settings.warmup, steps // 10)
    rising = FIRST + (1 - FIRST) * step / warmup if step < warmup else 1.0
    return float(settings.rate * rising * 0.1 ** sum(step >= round(share * steps) for share in settings.drops))


def optimizer_of(detector: nn.Module, settings: Schedule) -> torch.optim.Optimizer:
    """Return SGD; the scales and shifts of norms do not decay."""
    norms = {
        id(p)
        for part in detector.modules()
        if isinstance(part, (_BatchNorm, nn.LayerNorm))
        for p in part.parameters()
    }
    trained = [p for p in detector.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], settings.rate, settings.momentum)


def train(
    detector: nn.Module, objects: Objects, settings: Schedule, reading: Reading, seed: int, folder: Path
) -> None:
    """Train a detector in place, continuing from `folder/detector.pt`.

    Interrupted by Ctrl-C or SIGTERM, it saves what it has reached. On a CPU a training that was interrupted gives the
    same bits as one that was not; on a GPU some of the operations add in an order that varies.

    Raises:
        UserError: settings that cannot work, a damaged checkpoint, no usable image, or a loss that is not finite.
        KeyboardInterrupt: it was interrupted.
    """
    check_enough(objects, settings)
    steps = steps_of(settings.length, images=len(objects), batch=settings.batch)
    detector.to(reading.device)
    device = torch.device(reading.device)
    training = Training(detector, optimizer_of(detector, settings), objects, settings, reading, seed, folder, steps)
    sweep(folder)
    training.load(device)
    detector.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training.run_through()


def check_enough(objects: Objects, settings: Schedule) -> None:
    """Check that there are images for a batch.

    Raises:
        UserError: there are fewer.
    """
    if len(objects) < settings.batch:
        raise UserError(
            f"{len(objects)} images to learn to detect on are fewer than a batch of {settings.batch}: lower the "
            "evaluation's batch, and its rate with it."
        )


@dataclass
class Training:
    """A detector on its way."""

    detector: nn.Module
    optimizer: torch.optim.Optimizer
    objects: Objects
    settings: Schedule
    reading: Reading
    seed: int
    folder: Path
    steps: int
    step: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """What it continues from."""
        return self.folder / "detector.pt"

    def load(self, device: torch.device) -> None:
        """Take up the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        with continuing(self.checkpoint):
            content = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.detector.load_state_dict(content["detector"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.step = int(content["step"])

    def save(self) -> None:
        """Write the checkpoint, all or nothing."""
        content = {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        write_state(self.checkpoint, content)

    def run_through(self) -> None:
        """Take every step from the present one to the last."""
        every = min(KEPT_EVERY, max(1, len(self.objects) // self.settings.batch))
        with Interruption() as interruption:
            for batch in interruption.until_asked(self._batches()):
                losses = self._step(self._usable(batch))
                self.step += 1
                if self.reading.tell:
                    shown = " · ".join(f"{name} {value:.3f}" for name, value in losses.items())
                    self.reading.tell("detection", self.step, self.steps, shown)
                if self.step % every == 0 or self.step == self.steps:
                    self.save()
            if interruption.asked:
                self.save()
                raise KeyboardInterrupt

    def _batches(self) -> Iterator[list[Example]]:
        order = positions(
            len(self.objects),
            self.settings.batch,
            first=self.step,
            last=self.steps,
            seed=self.seed,
            rank=0,
            world=1,
        )
        loader: DataLoader[list[Example]] = DataLoader(
            self.objects,  # type: ignore[arg-type]  # `list` makes batches of its items
            batch_sampler=order,  # positions are (epoch, index) and need no length
            collate_fn=list,
            num_workers=self.reading.workers,
        )
        yield from loader

    def _usable(self, batch: list[Example]) -> list[Example]:
        """Note images that cannot be used, and give up where hardly any can."""
        for example in batch:
            self.refused = [*self.refused, example.reason] if example.reason else []
            tell_unreadable(example, self.reading)
            if len(self.refused) >= min(UNREADABLE, len(self.objects)):
                raise UserError(
                    f"{len(self.refused)} images in a row in {self.objects.folder} cannot be used, the first of them "
                    f"as {self.refused[0]}. The annotations seem to be of other images."
                )
        return [example for example in batch if not example.reason]

    def _step(self, batch: list[Example]) -> dict[str, float]:
        """Rate, losses, backward, step; a batch without any usable image changes nothing."""
        if not batch:
            return {}
        torch.default_generator.manual_seed(seed_of(self.seed, "", self.step, "detection"))
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed_of(self.seed, "", self.step, "detection"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.steps, self.settings)
        images, targets = on_device(batch, self.reading.device)
        losses: dict[str, Tensor] = self.detector(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            raise UserError(
                f"The detector's loss is not finite at step {self.step + 1} of {self.steps} (images "
                f"{', '.join(example.key for example in batch[:5])}). The last checkpoint is kept in {self.folder}. "
                "Lower the evaluation's rate or lengthen its warmup, and delete that folder to start anew."
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {"loss": float(total.detach())}


def tell_unreadable(example: Example, reading: Reading) -> None:
    """Say that an image cannot be used.

    Raises:
        UserError: there is nobody to tell.
    """
    if not example.reason:
        return
    if reading.unreadable is None:
        raise UserError(f"The image '{example.key}' cannot be used: {example.reason}.")
    reading.unreadable(example.key, example.reason)


def on_device(batch: list[Example], device: str) -> tuple[list[Tensor], list[Target]]:
    """Return images, floats in [0, 1], and targets."""
    images = [example.image.to(device).float() / 255 for example in batch]
    return images, [{name: value.to(device) for name, value in example.target.items()} for example in batch]
