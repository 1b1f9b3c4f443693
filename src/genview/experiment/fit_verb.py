"""What `fit-generator` does: a generator of one's own and its student, or a LoRA for one that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from genview.experiment.fit import Fit, FitExperiment
from genview.experiment.fit_cost import fit_cost
from genview.experiment.fit_lora import LoraExperiment, LoraFit, lora_cost
from genview.experiment.fit_student import teach
from genview.store import RunFolder
from genview.training.pretrain import Tell

Fitting = FitExperiment | LoraExperiment
Told = Callable[[str], object]
Work = TypeVar("Work", Fit, LoraFit)


def fit_generator(experiment: Fitting, out: Path, tell: Tell, say: Told = lambda _: None) -> str:
    """Train what an experiment describes into `out`, continuing what is there; return the setting that uses it.

    Before a training begins, not when one is continued, `say` is told what it will cost; at the end, of a student,
    where its page is.

    Raises:
        UserError: the settings do not fit together, or `out` belongs to another experiment.
    """
    run, lists = RunFolder(out), out / "index"
    # What cannot work is found by the cost, and can be mended, as the folder is nobody's until after it.
    if isinstance(experiment, LoraExperiment):
        _tell_cost(LoraFit(experiment, run, lists, tell), lora_cost, say)
        LoraFit.open(experiment, out, tell).train()
        return f"generator.lora={out}"
    _tell_cost(Fit(experiment, run, lists, tell), fit_cost, say)
    work = Fit.open(experiment, out, tell)
    work.train()
    if experiment.distil is None:
        return f"generator.weights={out}"
    student = teach(work)
    say(f"The student's page: {RunFolder(student).page}")
    return f"generator.weights={student}"


def planned(experiment: Fitting, out: Path) -> Iterator[str]:
    """Yield lines that say what the training of an experiment will cost; `out` is left as it is.

    Raises:
        UserError: images or weights cannot be had, or settings do not fit together.
    """
    run = RunFolder(out)
    if isinstance(experiment, LoraExperiment):
        return lora_cost(LoraFit(experiment, run))
    return fit_cost(Fit(experiment, run))


def _tell_cost(work: Work, cost: Callable[[Work], Iterator[str]], say: Told) -> None:
    if not work.begun:
        for line in cost(work):
            say(line)
