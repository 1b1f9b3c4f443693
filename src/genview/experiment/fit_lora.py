"""`fit-generator` for a Stable unCLIP that is there already: low-rank updates that know one's own images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from genview.experiment.fit import held_squares, parted
from genview.experiment.fit_cost import disk_of, images_line, memory_line, steps_line
from genview.experiment.load import dump, to_yaml
from genview.experiment.schema import essential, with_preset
from genview.generators import UnclipSettings
from genview.generators.lora_fit import LoraFitSettings, UnclipLora
from genview.images import ImageSettings, ImageSource
from genview.images.source import silent
from genview.report import write_fit_page
from genview.store import RunFolder, claim, write_bytes
from genview.training.fit import fit
from genview.training.pretrain import Tell, make_fabric
from genview.training.task import Task, check_batch


@dataclass(frozen=True)
class LoraExperiment:
    """Images, the Stable unCLIP that is to know them, and the training of its LoRA."""

    images: Annotated[ImageSettings, Field(discriminator="kind")]
    generator: Annotated[UnclipSettings, BeforeValidator(with_preset)] = field(default_factory=UnclipSettings)
    lora: LoraFitSettings = field(default_factory=LoraFitSettings)
    seed: int = 0


@dataclass(frozen=True)
class LoraFit:
    """One such experiment in one run folder."""

    experiment: LoraExperiment
    run: RunFolder
    keep: Path | None = None
    """Where lists of images are kept; nowhere where None."""
    tell: Tell = silent

    @staticmethod
    def open(experiment: LoraExperiment, out: Path, tell: Tell) -> LoraFit:
        """Bind an experiment to its folder.

        Raises:
            UserError: `out` belongs to another experiment.
        """
        claim(out, essential(dump(experiment)))
        write_bytes(out / "experiment.yaml", to_yaml(experiment).encode())
        return LoraFit(experiment, RunFolder(out), out / "index", tell)

    @cached_property
    def parts(self) -> tuple[ImageSource, ImageSource]:
        """Images to train on, and images held out.

        Raises:
            UserError: there are no images, or too few.
        """
        settings = self.experiment.lora
        with make_fabric(settings, "lora").rank_zero_first():  # what it writes, the others find
            source = self.experiment.images.build(self.keep, self.tell)
        return parted(source, settings.held_out, self.experiment.seed)

    @property
    def begun(self) -> bool:
        """Whether there is something to continue."""
        return (self.run.root / "training.pt").exists()

    def task(self, held_out: Tensor) -> Task:
        """What there is to do.

        Raises:
            UserError: the weights cannot be had, or are not those of a Stable unCLIP.
        """
        experiment, settings = self.experiment, self.experiment.lora
        lesson = UnclipLora(experiment.generator, settings, make_fabric(settings, "lora").device)
        return Task(lesson, self.parts[0], held_out, settings, self.run, experiment.seed, "lora")

    def train(self) -> None:
        """Train what is left to train.

        Raises:
            UserError: see `task` and `training.fit.fit`.
        """
        held = held_squares(self.parts[1], self.experiment.lora.size, self.run)
        fit(self.task(held), self.tell, lambda: write_fit_page(self.run))


def lora_cost(work: LoraFit) -> Iterator[str]:
    """Yield lines that say what there is to train on, how long it will take, and what it needs.

    Raises:
        UserError: the images or the weights cannot be had.
    """
    yield images_line(work.parts)
    check_batch(work.experiment.lora, len(work.parts[0]), 1, "lora")
    task = work.task(torch.empty(0))
    disk = disk_of(task.lesson, task.lesson.kept(), each=4)
    yield steps_line("lora", task)
    yield memory_line(disk)
