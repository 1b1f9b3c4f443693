"""Doing a study: what its runs share is made once, then the runs are handed out like the shards of a stage."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from genview.errors import UserError
from genview.experiment.evaluating import check_evaluations, is_judged
from genview.experiment.grid import Grid, GridRun
from genview.experiment.load import to_yaml
from genview.experiment.schema import Experiment
from genview.experiment.sharing import Shared, making_of
from genview.experiment.stages import Stages, refuse_another
from genview.experiment.study_progress import telling_steps
from genview.images.source import silent
from genview.launch import Here, Indexed, Launcher, launch
from genview.report import Design, write_study, write_tables
from genview.store import RunFolder, write_bytes, write_json
from genview.training import plan_of
from genview.training.pretrain import Tell

MOST = 5
"""Failures that are told in full."""


@dataclass(frozen=True)
class Runs:
    """The runs of a study in its folder `out`, for launchers: each is a shard.

    A run that meets what the user can mend is recorded as failed and the next one begins; whatever else goes wrong is
    left to the launcher, which gives the run to a fresh worker.
    """

    grid: Grid
    out: Path
    tell: Tell = silent

    @property
    def folder(self) -> Path:
        """Where launchers keep what they need."""
        return self.out / "launch" / "runs"

    @property
    def shared(self) -> Shared:
        """What the runs share."""
        return Shared(self.out / "shared")

    @property
    def design(self) -> Design:
        """The study as the report sees it."""
        return self.grid.design(self.out)

    def prepare(self, device: str) -> Callable[[int], None]:
        """Nothing to load beforehand."""
        return partial(self.do, device)

    def finished(self, number: int) -> bool:
        """Whether a run has come to its end, and has been judged as is wanted now."""
        run = self.run_folder(number)
        return run.finished.exists() and is_judged(self.grid.runs[number].experiment, run)

    def making(self, number: int) -> Experiment | None:
        """Return what makes the views of a run, None where it has none."""
        return making_of(self.grid.runs[number].experiment, self.grid.seed_of_views)

    def do(self, device: str, number: int) -> None:
        """Do a run on a device, continuing where it stopped, and bring the table up to date."""
        self.run_folder(number).failure.unlink(missing_ok=True)
        try:
            self._complete(self.grid.runs[number], self.making(number), device)
        except UserError as error:
            self.failed(number, str(error))
            return
        except Exception:
            self.failed(number, traceback.format_exc())
            raise
        write_json(self.run_folder(number).finished, {"device": device})
        write_tables(self.design, self.out)

    def failures(self) -> list[tuple[str, str]]:
        """Return name and reason of the runs that failed; of a traceback, its last line."""
        places = [(n, self.run_folder(n).failure) for n in range(len(self.grid.runs)) if not self.finished(n)]
        return [(self.grid.runs[n].name, _reason(place.read_text())) for n, place in places if place.exists()]

    def failed(self, number: int, reason: str) -> None:
        """Record why a run cannot be done."""
        write_bytes(self.run_folder(number).failure, reason.encode(errors="backslashreplace"))

    def _complete(self, run: GridRun, making: Experiment | None, device: str) -> None:
        stages = self.opened(run)
        if making is not None:
            self.shared.lend(making, stages.run)
        wanted = run.experiment.training.device
        own = device if wanted == "auto" or device.startswith(wanted) else wanted
        training = replace(run.experiment.training, device=own, devices=1)
        stages = replace(stages, experiment=replace(run.experiment, training=training), wanted_device=own)
        plan_of(training, len(stages.sources.train))
        tell = _naming(run.name, self.tell)
        check_evaluations(stages, tell)
        stages.pretrain(tell)
        stages.evaluate(tell)
        stages.report(tell)

    def opened(self, run: GridRun) -> Stages:
        """Bind a run to its folder.

        Raises:
            UserError: the folder holds the work of other settings.
        """
        folder = RunFolder(self.out / run.folder)
        self.shared.lend_index(folder)
        return Stages.open(run.experiment, folder.root, self.tell)

    def run_folder(self, number: int) -> RunFolder:
        """Where a run lies."""
        return RunFolder(self.out / self.grid.runs[number].folder)


def refuse_others(grid: Grid, out: Path) -> None:
    """Check that the folder of a study holds no run of other settings; nothing is written.

    Raises:
        UserError: it holds one; the message shows what differs.
    """
    for run in grid.runs:
        refuse_another(run.experiment, RunFolder(out / run.folder))


def run_study(grid: Grid, out: Path, launcher: Launcher, tell: Tell) -> None:
    """Do the runs that are not finished, each on one device, and write table and figure.

    In one process, leases are taken all the same: further processes that are started with the same command, here or
    on machines that share the folder, share the runs.

    Raises:
        UserError: the folder holds runs of other settings, there are no labels to score by, or runs failed (all
            others are finished).
    """
    launcher = Indexed(0, 1) if isinstance(launcher, Here) else launcher
    runs = Runs(grid, out, tell if isinstance(launcher, Indexed) else silent)
    refuse_others(grid, out)
    stages = [runs.opened(run) for run in grid.runs]
    write_bytes(out / "study.yaml", to_yaml(grid.study).encode())
    left = [n for n in range(len(grid.runs)) if not runs.finished(n)]
    if left and replace(stages[0], tell=tell).sources.test is None:
        raise UserError("The images of this study have no labels to score its runs by: name labelled ones as `test`.")
    stopped = ""
    try:
        ready = _share(runs, left, launcher, tell)
        earlier, total = len(grid.runs) - len(left), len(grid.runs)
        tell("runs", earlier, total, "")
        with telling_steps(stages, tell) if ready else nullcontext():
            launch(launcher, runs, ready, lambda done, _, note: tell("runs", earlier + done, total, note))
    except UserError as error:
        stopped = str(error)
    write_study(runs.design, out)
    _conclude(runs, stopped)


def _share(runs: Runs, left: Sequence[int], launcher: Launcher, tell: Tell) -> list[int]:
    """Make what the runs share; return those that have what they need. The others are recorded as failed."""
    users: dict[Path, list[int]] = {}
    ready = []
    for number in left:
        making = runs.making(number)
        if making is None:
            ready.append(number)
        else:
            users.setdefault(runs.shared.views(making).root, []).append(number)
    for numbers in users.values():
        making = runs.making(numbers[0])
        assert making is not None
        try:
            runs.shared.make(making, launcher, tell)
            ready += numbers
        except UserError as error:
            for number in numbers:
                runs.failed(number, f"its views could not be made: {error}")
    return sorted(ready)


def _conclude(runs: Runs, stopped: str) -> None:
    """Raise UserError where runs failed."""
    failures = runs.failures()
    if not failures and not stopped:
        return
    told = "\n".join(f"  {name}: {reason}" for name, reason in failures[:MOST])
    more = f"\n  … and {len(failures) - MOST} more" if len(failures) > MOST else ""
    raise UserError(
        f"{len(failures)} of {len(runs.grid.runs)} runs failed; the others are not concerned.\n{told}{more}\n"
        "Each has a failure.txt in its folder. Mend the cause and run the same command again: what is finished stays."
        if failures
        else stopped
    )


def _reason(text: str) -> str:
    """Return the message of an error of the user's, or the last line of a traceback."""
    return text.rstrip().splitlines()[-1] if text.startswith("Traceback") else text.strip()


def _naming(name: str, tell: Tell) -> Tell:
    return lambda what, done, total, note: tell(what, done, total, f"{name} · {note}" if note else name)
