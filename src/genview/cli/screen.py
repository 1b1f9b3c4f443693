"""What the terminal shows: progress with the time left, the results of a run, a training as it goes on."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.table import Table

    from genview.experiment import Experiment
    from genview.report import Result
    from genview.store import RunFolder

screen = Console(stderr=True)
TOGETHER = "TORCHELASTIC_RUN_ID" in os.environ
"""Whether torchrun started this process."""
DAY = 86400.0
"""Seconds from which the time left is estimated, at most: what takes hours is counted in few, slow steps."""
FOLLOWS = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0"
"""Whether this is a further process of a training, whose first one does the talking."""


class Bars:
    """One progress bar for each thing that is being done, with the time left; a line every while without a screen."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=screen,
            speed_estimate_period=DAY,
            disable=not screen.is_terminal or FOLLOWS,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._latest: dict[str, int] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if FOLLOWS:
            return
        if done < self._latest.get(what, 0):
            self._again(what)
        self._latest[what] = done
        if not screen.is_terminal:
            self._say(what, done, total, note)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)

    def _again(self, what: str) -> None:
        """Begin anew what a study does once for each run: its time left has nothing to do with the last one's."""
        self._begun.pop(what, None)
        if what in self._tasks:
            self._progress.reset(self._tasks[what])

    def _say(self, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        start, first = self._begun.setdefault(what, (now, done))
        if done < total and now - self._said.get(what, 0.0) < 10:
            return
        self._said[what] = now
        left = (now - start) / (done - first) * (total - done) if done > first else float("nan")
        remaining = "" if left != left else f" · {left / 60:.1f} min left"
        screen.print(f"{what}: {done}/{total}{remaining} {note}", markup=False, highlight=False, soft_wrap=True)


def show(folder: RunFolder, experiment: Experiment) -> None:
    """Print the results of a run, how to use its backbone, and where its page is."""
    from genview.encoders.backbone import snippet

    show_scores(folder)
    out = Console(highlight=False)
    out.print(f"Use the backbone:\n{escape(snippet(experiment.training.backbone, folder.backbone))}", soft_wrap=True)
    if aside := folder.quarantined():
        out.print(f"{aside} images could not be used and were left out: {folder.quarantine_file}", soft_wrap=True)
    out.print(f"Page: {folder.page}", soft_wrap=True)


def show_scores(folder: RunFolder) -> bool:
    """Print the final scores in a run folder; say whether there are any."""
    from genview.report import results

    if rows := results(folder):
        Console(highlight=False).print(_scores(rows))
    return bool(rows)


def _scores(rows: list[Result]) -> Table:
    """Lay out final scores: the last backbone's, the best one's and the baseline's, where there are such."""
    from rich.table import Column, Table

    best = any(row.best is not None for row in rows)
    compared = any(row.baseline is not None for row in rows)
    measure = Column("measure", overflow="fold")  # its end tells measures apart
    table = Table(measure, "with views" if compared else "last" if best else "this run")
    for name in ["best"] * best + ["same budget without", "difference"] * compared + ["protocol"]:
        table.add_column(name)
    for row in rows:
        cells = [row.name, _percent(row.value)] + [_percent(row.best)] * best
        if compared:
            cells += [_percent(row.baseline), "" if row.difference is None else f"{100 * row.difference:+.1f}"]
        table.add_row(*cells, row.protocol)
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
