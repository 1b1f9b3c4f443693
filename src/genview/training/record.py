"""What a training leaves to be looked at, written by the first process: measures, example pairs, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor

from genview.distributed import rank
from genview.images import ImageSource
from genview.pairs import PairBatch
from genview.quality import Quality
from genview.store import RunFolder
from genview.training.examples import PairExamples
from genview.training.loggers import loggers
from genview.training.settings import Log

Tell = Callable[[str, int, int, str], None]
"""(what, done, total, note): progress for whoever shows it."""


class Recorded(Protocol):
    """What the record of a training needs of its settings."""

    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def log(self) -> tuple[Log, ...]: ...  # noqa: D102


class Record:
    """Writes to a run folder; knows how long the training waited for data and how long it will take.

    `verb` is what the training is called when it is told of, and `prefix` the first part of its measures' names.
    """

    verb, prefix = "pretrain", "train"

    def __init__(self, run: RunFolder, settings: Recorded, steps: int, first: int, tell: Tell) -> None:
        self.run, self._settings, self._steps, self._tell = run, settings, steps, tell
        self._leads = rank() == 0
        self._loggers = loggers(settings.log, run, first) if self._leads else []
        self._examples = PairExamples.continued(run.pairs, first) if self._leads else PairExamples()
        self._since, self._at, self._waited = time.perf_counter(), first, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in self._loggers:
            logger.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as time in which the device had no data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def quarantine(self, unreadable: Iterable[tuple[str, str]]) -> None:
        """Note images that could not be read."""
        for key, reason in unreadable:
            self.run.quarantine(key, reason)

    def measures(self, values: dict[str, float], step: int, protocol: str = "") -> None:
        """Write measures of a step; scores with the `protocol` that gave them."""
        if not self._leads:
            return
        for name, value in values.items():
            self.run.measure(name, value, step, protocol)
        for logger in self._loggers:
            logger.measure(values, step)

    def progress(self, values: dict[str, float], step: int) -> None:
        """Write measures of a step with throughput, share of waiting and time left, and tell of them."""
        now = time.perf_counter()
        taken, steps = max(now - self._since, 1e-9), step - self._at
        speed = steps * self._settings.batch / taken
        waiting = min(1.0, self._waited / taken)
        left = (self._steps - step) * taken / max(steps, 1)
        self._since, self._at, self._waited = now, step, 0.0
        more = {"images_per_second": speed, "waiting": waiting, "seconds_left": left}
        self.measures({**values, **{f"{self.prefix}/{name}": value for name, value in more.items()}}, step)
        if self._leads:
            loss = values[f"{self.prefix}/loss"]
            note = f"loss {loss:.4f} · {speed:.0f} images/s · waiting for data {waiting:.0%}"
            self._tell(self.verb, step, self._steps, note)

    def examples(
        self, batch: PairBatch, quality: Quality | None, source: ImageSource, losses: Tensor | None, step: int
    ) -> None:
        """Offer the pairs of a step, with their looks applied, for the page."""
        if self._leads:
            images = batch.origin.image.tolist()
            labels = [source.label(i) for i in images] if source.classes else [None] * len(images)
            classes = ["" if label is None else source.classes[label] for label in labels]
            keys = [source.key(i) for i in images]
            self._examples.offer(batch, quality, keys, classes, losses=losses, step=step)

    def keep(self) -> None:
        """Write the pairs that were offered; belongs before a checkpoint, after which they are not offered again."""
        if self._leads:
            self._examples.save(self.run.pairs)
