"""The student of a generator that `fit-generator` has trained: its views in a few steps."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from genview.experiment.fit import Fit
from genview.experiment.load import dump, to_yaml
from genview.experiment.schema import essential
from genview.generators.distil import Distillation
from genview.generators.start import start_from
from genview.report import write_fit_page
from genview.store import RunFolder, claim, write_bytes
from genview.training.fit import fit
from genview.training.task import Task


def teach(work: Fit) -> Path:
    """Train the student of a finished generator, continuing what is there; return its folder.

    Raises:
        UserError: the folder holds another student, or the generator is of another architecture.
    """
    experiment, folder = work.experiment, work.run.root / "student"
    claim(folder, {"distil": essential(dump(experiment))["distil"]})
    write_bytes(folder / "experiment.yaml", to_yaml(experiment).encode())
    teacher = work.lesson()
    start_from(teacher, str(work.run.root))
    student = Distillation(teacher, experiment.student_training)
    task = student_task(work, student, work.held_out(), folder)
    fit(task, work.tell, lambda: write_fit_page(task.run))
    return folder


def student_task(work: Fit, student: Distillation, held_out: Tensor, folder: Path) -> Task:
    """Return what there is to do for a student."""
    settings, seed = work.experiment.student_training, work.experiment.seed
    return Task(student, work.parts[0], held_out, settings, RunFolder(folder), seed, "distil")
