"""The verb `watch`: a training, or the runs of a study, as they go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from genview.cli.screen import screen
from genview.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from genview.report import Curve, Standing

EVERY = 2.0
"""Seconds from one look to the next."""
LATEST_FIRST = (("student", "the student"), (".", ""), ("encoder-run", "the encoder, which comes first"))
"""Folders below that of `fit-generator` where its trainings measure, and what they train."""


def do_watch(out: Path, once: bool) -> None:
    """Show what goes on in a run folder, in that of a study or of `fit-generator`, until it ends.

    Raises:
        UserError: there is no such folder.
    """
    from rich.live import Live

    if not out.is_dir():
        raise UserError(f"There is no run folder {out}.")
    look = _of_study if (out / "study.yaml").exists() else _of_training
    shown, over = look(out)
    with Live(shown, console=screen, screen=False, auto_refresh=False) as live:
        while not once and not over:
            time.sleep(EVERY)
            shown, over = look(out)
            live.update(shown, refresh=True)


Look = Callable[[Path], "tuple[RenderableType, bool]"]
"""Returns what there is to show, and whether it will not change any more."""


def _of_training(out: Path) -> tuple[RenderableType, bool]:
    from genview.report import watched
    from genview.store import RunFolder

    over = RunFolder(out).backbone.exists() or _fitted(out)
    for part, title in LATEST_FIRST:
        if curves := watched(RunFolder(out / part)):
            return board(curves, title), over
    return f"Nothing is measured in {out} yet: no training has begun there.", over


def _fitted(out: Path) -> bool:
    """Whether `fit-generator` is through: with a generator or a LoRA, and with the student where one is wanted."""
    from genview.experiment import read_yaml
    from genview.generators.token_diffusion import read_sampling
    from genview.report.fitting import setting_of
    from genview.store import RunFolder

    run = RunFolder(out)
    if setting_of(run) is None:
        return False
    if not run.experiment.exists() or not read_yaml(run.experiment).get("distil"):
        return True
    student = read_sampling(out).distilled  # its folder has the same experiment
    return student or setting_of(RunFolder(out / "student")) is not None


def _of_study(out: Path) -> tuple[RenderableType, bool]:
    from genview.report import standings

    runs = standings(out)
    return overview(runs), all(run.state in ("finished", "failed") for run in runs)


def board(curves: list[Curve], title: str = "") -> RenderableType:
    """Lay out the measures of a training that is going on."""
    from rich.table import Table

    table = Table("measure", "step", "value", "of late", title=title or None)
    for curve in curves:
        table.add_row(curve.name, f"{curve.step:,}", curve.shown, curve.line)
    return table


def overview(runs: list[Standing]) -> RenderableType:
    """Lay out the runs of a study that have begun or failed, and count the others."""
    from rich.markup import escape
    from rich.table import Table

    from genview.report.words import span

    count = Counter(run.state for run in runs)
    table = Table("run", "step", "left", "last measure", title=f"{count['finished']} of {len(runs)} runs finished")
    for run in runs:
        if run.state == "begun":
            table.add_row(escape(run.name), f"{run.step:,}", run.left, f"{span(run.silence)} ago")
        elif run.state == "failed":
            table.add_row(escape(run.name), "failed", "", "see its failure.txt")
    return table
