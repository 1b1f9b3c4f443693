"""The pages of run folders: of one run whatever it holds, of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genview.errors import UserError
from genview.experiment.load import load, read_yaml, verb_of
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.images import ImageSource
from genview.images.source import Tell
from genview.report import Compared, write_comparison, write_fit_page, write_page
from genview.store import RunFolder

SEVERAL = "comparison.html"


def report_runs(folders: Sequence[Path], out: Path | None, tell: Tell, say: Callable[[str], None]) -> Path:
    """Write the page of a run to `out` (its own report.html where None), or one that compares several; return it.

    `say` is told what the page has to do without.

    Raises:
        UserError: a folder is that of no run, several are compared of which one trains a generator, or a file of a
            run is damaged.
    """
    found = [(RunFolder(folder), _settings(folder)) for folder in folders]
    if out is not None and out.is_dir():
        out = out / (RunFolder(out).page.name if len(found) == 1 else SEVERAL)
    if len(found) > 1:
        return _compare(found, out or Path(SEVERAL))
    [(run, settings)] = found
    if _fits(settings):
        return write_fit_page(run, out)
    return write_page(run, _source(run, tell, say), tell, out)


def _settings(folder: Path) -> dict[str, Any]:
    """Return the resolved experiment of a run folder."""
    if folder.is_file():
        raise UserError(
            f"{folder} is a file: `genview report` takes the folders of runs, which hold their experiments "
            "themselves, as in genview report runs/mine."
        )
    if (folder / "study.yaml").exists() and not RunFolder(folder).experiment.exists():
        raise UserError(
            f"{folder} is the folder of a study, whose page is {folder / 'report.html'}: `genview study FILE --out "
            f"{folder} --table` writes it anew. The folders of its runs are below {folder / 'runs'}."
        )
    if not RunFolder(folder).experiment.exists():
        what = "holds no experiment.yaml, so it is no run folder" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}. Give the folder that was --out of `genview run`.")
    return read_yaml(RunFolder(folder).experiment)


def _fits(settings: dict[str, Any]) -> bool:
    """Whether this is the training of a generator."""
    return not {"fit", "lora"}.isdisjoint(settings)


def _source(run: RunFolder, tell: Tell, say: Callable[[str], None]) -> ImageSource | None:
    """The originals; without them the page shows what the run folder holds.

    A backbone that was pretrained elsewhere has none.
    """
    if verb_of(run.experiment) == "evaluate":
        return None
    try:
        experiment = load(Experiment, run.experiment)
        return Stages(experiment, run, index=run.root / "index", tell=tell).sources.train
    except UserError as error:
        say(f"Most originals are missing on the page, for their images are not at hand. {error}")
        return None


def _compare(found: Sequence[tuple[RunFolder, dict[str, Any]]], out: Path) -> Path:
    fitted = next((run for run, settings in found if _fits(settings)), None)
    if fitted is not None:
        raise UserError(f"{fitted.root} trains a generator and has no scores to compare: report it alone.")
    return write_comparison([Compared(run, settings) for run, settings in found], out)
