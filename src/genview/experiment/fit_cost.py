"""What training a generator will cost, from a few timed steps on this machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from genview.distributed import world_size
from genview.experiment.cost import in_bytes, training_cost
from genview.experiment.fit import Fit
from genview.experiment.fit_student import student_task
from genview.generators.distil import Distillation
from genview.generators.lesson import Lesson
from genview.images import ImageSource
from genview.report.words import span
from genview.training.task import Task
from genview.training.trial import trial

TRIAL_STEPS = 2


def fit_cost(work: Fit) -> Iterator[str]:
    """Yield lines that say what there is to train on, how long it will take, and what it needs of memory and disk.

    Raises:
        UserError: the images or the weights cannot be had; better now than after hours.
    """
    experiment, settings = work.experiment, work.experiment.fit
    yield images_line(work.parts)
    work.check(1)
    lesson = work.lesson()
    task = work.task(lesson, torch.empty(0))
    work.take_start(lesson)
    if experiment.trains_encoder:
        cost = training_cost(experiment.method, experiment.encoder_training, experiment.pairs, len(task.source))
        yield f"encoder: {cost.words}"
    else:
        said = list[str]()
        work.take_trunk(lesson, said.append)
        yield f"encoder: taken from {experiment.encoder_weights or settings.start_from}, not trained"
        yield from said
    disk = [disk_of(lesson, lesson.denoiser.state_dict())]
    yield steps_line("generator", task)
    if experiment.distil is not None:
        student = Distillation(lesson, experiment.student_training)
        disk.append(disk_of(student, student.denoiser.state_dict()))
        yield steps_line("student", student_task(work, student, torch.empty(0), work.run.root))
    yield memory_line(*disk)


def images_line(parts: tuple[ImageSource, ImageSource]) -> str:
    """Say how many images there are."""
    return f"images: {len(parts[0]):,} to train on, {len(parts[1])} held out to look at"


def steps_line(what: str, task: Task) -> str:
    """Say how long a training will take. Its lesson is spoilt by this."""
    settings = task.settings
    seconds = trial(task, TRIAL_STEPS)
    return (
        f"{what}: {span(seconds * settings.steps)} for {settings.steps:,} steps of {settings.batch} windows "
        f"({settings.batch / seconds:,.0f} a second; devices: {world_size()}), without loading and looking"
    )


class Disk(NamedTuple):
    """Bytes of a training's result, and of the state to continue it from."""

    result: int
    state: int


def disk_of(lesson: Lesson, result: Mapping[str, Tensor], *, each: int = 2) -> Disk:
    """Return what a lesson will need of the disk, before others freeze it; `each` number of the result has bytes.

    The state has the lesson in float32 and, of what is trained, two moments and an average.
    """
    trained = sum(p.numel() for p in lesson.parameters() if p.requires_grad)
    return Disk(each * _numbers(result), 4 * _numbers(lesson.kept()) + 3 * 4 * trained)


def _numbers(state: Mapping[str, Tensor]) -> int:
    """How many there are; what two modules share is written once."""
    return sum({value.data_ptr(): value.numel() for value in state.values()}.values())


def memory_line(*disk: Disk) -> str:
    """Say what trainings need of memory, and of the disk for results and checkpoints."""
    result, state = (sum(bytes_) for bytes_ in zip(*disk, strict=True))
    return f"memory: {_memory()}; disk: {in_bytes(result)} for the result, {in_bytes(state)} to continue from"


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{in_bytes(torch.cuda.max_memory_allocated())} of the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} at most so far"
