"""A short timed training of a generator, to tell beforehand what all of it will take."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from genview.distributed import world_size
from genview.training.average import MovingAverage
from genview.training.devices import make_fabric
from genview.training.fit import Fitting, FittingRecord, FromBytes, Task, optimizer_of
from genview.training.state import LessonState


def trial(task: Task, steps: int) -> float:
    """Take a few steps on noise, on all devices; return seconds for one. The lesson is spoilt by this."""
    settings, lesson = task.settings, task.lesson
    fabric = make_fabric(settings, "fit")
    lesson.to(fabric.device).train()
    optimizer = optimizer_of(lesson, settings)
    state = LessonState(lesson, optimizer, MovingAverage(lesson, settings.average))
    module, wrapped = fabric.setup(FromBytes(lesson), optimizer)
    record = FittingRecord(task.run, replace(settings, log=()), settings.steps, 0, lambda *_: None)
    fitting = Fitting(task, fabric, module, wrapped, state, record)
    share = settings.batch // world_size()
    pixels = torch.randint(256, (share, 3, settings.size, settings.size), dtype=torch.uint8, device=fabric.device)
    fitting.take_step(pixels)
    start = time.perf_counter()
    for _ in range(steps):
        fitting.take_step(pixels)
    float(state.total)  # waits for the device
    return (time.perf_counter() - start) / steps
