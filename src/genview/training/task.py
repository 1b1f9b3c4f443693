"""What a generator is trained for, and the windows of its images step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genview.distributed import rank, world_size
from genview.errors import UserError
from genview.generators.lesson import Lesson, LessonSettings
from genview.generators.windows import Window, Windows, together
from genview.images import ImageSource
from genview.images.order import positions
from genview.store import RunFolder

CHECKPOINT = "training.pt"


@dataclass(frozen=True)
class Task:
    """What a generator is trained for: the lesson, images, settings, where results go, and the seed.

    `held_out`: images that are not trained on, B×3×S×S in [0, 1], of which views are drawn; none where it is empty.
    `section` is where in an experiment the settings are, for errors.
    """

    lesson: Lesson
    source: ImageSource
    held_out: Tensor
    settings: LessonSettings
    run: RunFolder
    seed: int
    section: str = "fit"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished training."""
        return self.run.root / CHECKPOINT

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.run.root / self.lesson.last_file).exists()

    def first_windows(self, device: torch.device) -> Iterator[Tensor]:
        """Yield images of the first steps, about `code_from` or one for each image; the same for any process."""
        settings = self.settings
        steps = min(settings.steps, -(-min(settings.code_from, len(self.source)) // settings.batch))
        for window in self._loader(self._order(0, steps, 0, 1), device):
            yield as_images(window.pixels.to(device))

    def batches(self, first: int, device: torch.device) -> Iterator[Window]:
        """Yield this process's windows of every step from `first` on."""
        return iter(self._loader(self._order(first, self.settings.steps, rank(), world_size()), device))

    def _order(self, first: int, last: int, own: int, world: int) -> Iterator[list[tuple[int, int]]]:
        batch, count = self.settings.batch, len(self.source)
        return positions(count, batch, first=first, last=last, seed=self.seed, rank=own, world=world)

    def _loader(self, order: Iterator[list[tuple[int, int]]], device: torch.device) -> DataLoader[Window]:
        settings = self.settings
        return DataLoader(
            Windows(self.source, settings.size, settings.zoom, settings.flip, self.seed),
            batch_sampler=order,  # positions are (epoch, index) and need no length
            collate_fn=together,
            num_workers=settings.workers,
            pin_memory=device.type == "cuda",
        )


def check_batch(settings: LessonSettings, count: int, processes: int, section: str) -> None:
    """See that `count` images are enough for a batch, and that it can be divided among the processes.

    Raises:
        UserError: it is not so; `section` is where in an experiment the settings are.
    """
    batch = settings.batch
    if count < batch:
        raise UserError(
            f"There are {count} images to train on, fewer than one batch of {batch}: a generator needs some "
            f"thousands of images, and {section}.batch at most their number. "
            f"Try --set {section}.batch={max(count // 2, 1)}."
        )
    if batch % processes:
        raise UserError(
            f"{section}.batch {batch} cannot be divided among {processes} processes: take a multiple of {processes}."
        )


def as_images(pixels: Tensor) -> Tensor:
    """Uint8 to floats in [0, 1]."""
    return pixels.to(torch.get_default_dtype()) / 255
