"""Training a generator: one loop for whatever is a lesson (see `generators.lesson`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from genview.distributed import global_mean, rank, world_size
from genview.errors import UserError
from genview.generators.lesson import Lesson, LessonSettings
from genview.generators.windows import Window
from genview.launch import alone
from genview.seeds import seed_of
from genview.store import sweep
from genview.training.average import MovingAverage
from genview.training.devices import make_fabric, own_buffers
from genview.training.interrupt import Interruption
from genview.training.record import Record, Tell
from genview.training.result import fresh, remove, write_result
from genview.training.samples import draw, keep, scores
from genview.training.state import LessonState
from genview.training.task import Task, as_images, check_batch

Page = Callable[[], object]


def fit(task: Task, tell: Tell, page: Page = lambda: None) -> None:
    """Train a lesson and write its result to the run folder, continuing from `training.pt` where there is one.

    With several processes, each calls this with the same arguments; the first one writes. A training that is finished
    is left as it is. Interrupted by Ctrl-C or SIGTERM, it saves what it has reached.

    Args:
        task: what to train.
        tell: progress.
        page: writes the page of the run; called by the first process whenever there is something new.

    Raises:
        UserError: settings that cannot work, a full disk, a damaged state, a loss that is not finite, or another
            process trains in the folder.
        KeyboardInterrupt: it was interrupted.
    """
    settings = task.settings
    if task.finished:
        tell("fit-generator", settings.steps, settings.steps, "finished already")
        return
    fabric = make_fabric(settings, "fit")
    check_batch(settings, len(task.source), world_size(), task.section)
    own = alone(task.run.root, "training", lambda note: tell("fit-generator", 0, 1, note))
    with own if rank() == 0 else nullcontext():
        _fitted(task, fabric, tell, page)


def _fitted(task: Task, fabric: Fabric, tell: Tell, page: Page) -> None:
    settings, lesson = task.settings, task.lesson
    place(lesson, settings, fabric.device)
    optimizer = optimizer_of(lesson, settings)
    state = LessonState(lesson, optimizer, MovingAverage(lesson, settings.average))
    if rank() == 0:
        sweep(task.run.root)
    if task.checkpoint.exists():
        state.load(task.checkpoint, fabric.device)
    elif rank() == 0:
        lesson.prepare(task.first_windows(fabric.device))
    if rank() == 0:
        task.run.forget_after(state.step, ("fit/", "online/"))
    module, wrapped = fabric.setup(FromBytes(lesson), optimizer)  # gives all processes the weights of the first
    own_buffers(module)
    if not state.step:
        state.average = MovingAverage(lesson, settings.average)
    with FittingRecord(task.run, settings, settings.steps, state.step, tell) as record:
        Fitting(task, fabric, module, wrapped, state, record, page).run_through()
    with state.average.worn():
        if rank() == 0:
            write_result(lesson, task.run.root)
            page()
        fabric.barrier()


def place(lesson: Lesson, settings: LessonSettings, device: torch.device) -> None:
    """Bring a lesson to its device, in train mode, laid out and compiled as suits."""
    lesson.to(device).train()
    if device.type == "cuda":
        lesson.to(memory_format=torch.channels_last)  # on CPUs it makes no difference
    if settings.compile:
        for part in lesson.compiled_parts():
            part.compile(dynamic=False)


def optimizer_of(lesson: Lesson, settings: LessonSettings) -> torch.optim.Optimizer:
    """Return AdamW for what is trained of a lesson."""
    trained = [p for p in lesson.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, settings.rate, betas=(0.9, 0.99), weight_decay=0.01)


class FittingRecord(Record):
    """The record of a generator's training."""

    verb, prefix = "fit-generator", "fit"


class FromBytes(nn.Module):
    """A lesson that takes uint8 pixels: in half precision, Fabric would round images before they are used."""

    def __init__(self, lesson: Lesson) -> None:
        super().__init__()
        self.lesson = lesson

    def forward(self, pixels: Tensor) -> Tensor:
        """Losses B of windows uint8 B×3×S×S."""
        losses: Tensor = self.lesson(as_images(pixels))
        return losses


@dataclass
class Fitting:
    """One run through the steps that are left."""

    task: Task
    fabric: Fabric
    module: nn.Module
    optimizer: Any
    state: LessonState
    record: Record
    page: Page = lambda: None

    def run_through(self) -> None:
        """Take every step from the state's to the last."""
        with Interruption() as interruption:
            for window in interruption.until_asked(self._windows()):
                self.take_step(window.pixels.to(self.fabric.device, non_blocking=True))
                self._after(window)
            if interruption.asked:
                self._stop()

    def _windows(self) -> Iterator[Window]:
        batches = self.task.batches(self.state.step, self.fabric.device)
        while True:
            with self.record.waiting():
                window = next(batches, None)
            if window is None:
                return
            yield window

    def take_step(self, pixels: Tensor) -> None:
        """One optimizer step on windows uint8 B×3×S×S.

        The step's noise comes from the seed and the step's number, so a resumed training draws the same.
        """
        state, settings = self.state, self.task.settings
        torch.manual_seed(seed_of(self.task.seed, "", state.step, "noise"))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * share_of_rate(state.step, settings)
        loss = self.module(pixels).mean()
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.module, self.optimizer, max_norm=settings.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.average.update()
        state.step += 1
        state.total = state.total.to(loss.device) + loss.detach()
        state.counted += 1

    def _after(self, window: Window) -> None:
        state, settings = self.state, self.task.settings
        self.record.quarantine(window.unreadable)
        measured, sampled, saved = (
            state.step % every == 0 or state.step == settings.steps
            for every in (settings.measure_every, settings.sample_every, settings.save_every)
        )
        if measured or saved:
            loss = self._loss()
            if measured:
                self.record.progress({"fit/loss": loss}, state.step)
                state.total, state.counted = torch.zeros_like(state.total), 0
        if sampled:
            self._sample()
        if saved and rank() == 0:
            state.save(self.task.checkpoint)
        if (sampled or saved) and rank() == 0 and state.step < settings.steps:  # the last page shows the result
            self.page()

    def _loss(self) -> float:
        """Mean loss since the last measure, over all processes.

        Raises:
            UserError: it is not finite.
        """
        state = self.state
        state.total = global_mean(state.total)
        loss = float(state.total) / state.counted
        if not torch.isfinite(torch.tensor(loss)):
            raise UserError(
                f"The generator's loss is not finite at step {state.step}. The state of an earlier step is kept in "
                f"{self.task.checkpoint}: lower {self.task.section}.rate, or use precision float32."
            )
        return loss

    def _sample(self) -> None:
        """Draw views with the averaged weights, by way of a folder: exactly what a user will get."""
        images = self.task.held_out
        if not len(images) or rank() != 0:
            return
        folder = self.task.run.root / ".preview"
        lesson = self.task.lesson
        with self.state.average.worn():  # also while drawing: a lesson may draw with its own network
            fresh(folder)
            lesson.save(folder)
            try:
                generator = lesson.generator(folder, self.fabric.device)
            finally:
                remove(folder)
            if generator is None:
                return
            views = draw(generator, images.to(self.fabric.device), self.task.seed)
        found = scores(images.to(self.fabric.device), views, generator.encoder)
        keep(self.task.run.samples, self.state.step, images, views)
        self.record.measures({f"online/{name}": value for name, value in found}, self.state.step)

    def _stop(self) -> None:
        """Save what is reached, and stop."""
        if rank() == 0:
            self.state.save(self.task.checkpoint)
        raise KeyboardInterrupt


def share_of_rate(step: int, settings: LessonSettings) -> float:
    """Linear warm-up, then linear decay to zero over the second half."""
    left = 1 - step / settings.steps
    return min(1.0, (step + 1) / settings.warmup if settings.warmup else 1.0, 2 * left)
