"""Every stage of an experiment, in the order the data flows."""

from __future__ import annotations

from pathlib import Path

from genview.distributed import rank
from genview.experiment.evaluating import check_evaluations
from genview.experiment.making import analyse_images, generate_views
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.generators.imported import imported
from genview.launch import Launcher
from genview.store import RunFolder
from genview.training import plan_of
from genview.training.pretrain import Tell


def run_all(experiment: Experiment, out: Path, launcher: Launcher, tell: Tell) -> RunFolder:
    """Do every stage that `experiment` asks for; return the run folder.

    Raises:
        UserError: see the stages.
    """
    stages = Stages.open(experiment, out, tell)
    plan_of(experiment.training, len(stages.sources.train))
    check_evaluations(stages, tell)
    if experiment.generator is not None:
        analyse_images(stages, launcher, tell)
        if not imported(stages.run.views):
            generate_views(stages, launcher, tell)
    stages.pretrain(tell)
    if rank() > 0:  # processes that trained together; one is enough for what follows
        return stages.run
    stages.evaluate(tell)
    stages.report(tell)
    return stages.run
