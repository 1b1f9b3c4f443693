"""How far the trainings of a study are, whoever does them; runs alone would not move until the first is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

from genview.errors import UserError
from genview.experiment.stages import Stages
from genview.store import RunFolder
from genview.training import plan_of
from genview.training.pretrain import Tell

EVERY = 5.0
"""Seconds from one look at the runs' files to the next."""


def lengths(runs: Sequence[Stages]) -> list[int]:
    """Return the steps of each run's training, 0 where it will fail; images that runs share are listed once."""
    images: dict[str, int] = {}
    return [_length(stages, images) for stages in runs]


def _length(stages: Stages, images: dict[str, int]) -> int:
    wanted = stages.experiment
    shared = repr((wanted.images, wanted.test, wanted.validation))
    try:
        if shared not in images:
            images[shared] = len(stages.sources.train)
        return plan_of(wanted.training, images[shared]).steps
    except UserError:  # told when the run is done
        return 0


def steps_done(run: RunFolder, length: int) -> int:
    """Return how many of `length` training steps have been done, as of the latest measure."""
    if run.backbone.exists():
        return length
    return min(length, max((m.step for m in run.latest(4096)), default=0))


@contextmanager
def telling_steps(runs: Sequence[Stages], tell: Tell) -> Iterator[None]:
    """Tell how many steps of all trainings are done, every few seconds and at the end."""
    steps, over = lengths(runs), Event()

    def look() -> None:
        while True:
            ending = over.is_set()
            done = sum(steps_done(stages.run, length) for stages, length in zip(runs, steps, strict=True))
            tell("steps", done, sum(steps), "")
            if ending:
                return
            over.wait(EVERY)

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
