"""Judging the backbones of a run, and the quick probe that goes along with its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from genview.encoders import Backbone
from genview.encoders.backbone import load as load_backbone
from genview.evaluation import Online, Reading, Subject, judge, look_ahead, name_of, portray
from genview.experiment.schema import Experiment
from genview.store import Evaluated, RunFolder, want_results
from genview.training.pretrain import Tell

if TYPE_CHECKING:
    from genview.experiment.stages import Stages


def check_evaluations(stages: Stages, tell: Tell) -> None:
    """See that the evaluations will work, before a training.

    Raises:
        UserError: see `look_ahead`.
    """
    experiment = stages.experiment
    if stages.sources.test is not None:
        subject = _subject(stages, "last", lambda: Backbone(experiment.training.backbone), tell)
        look_ahead(subject, experiment.evaluation, tell)


def judge_run(stages: Stages, tell: Tell) -> None:
    """Judge the last and the best backbone of a run by its evaluations; what is judged already is left.

    Raises:
        UserError: the run has no backbone yet, or see `judge`.
    """
    experiment, run = stages.experiment, stages.run
    if stages.sources.test is None:
        return
    want_results(run.evaluation, [name_of(evaluation) for evaluation in experiment.evaluation])
    results = _judge(stages, "last", run.backbone, tell)
    if is_judged(experiment, run):
        return
    if not _same(run.backbone, run.best):
        _judge(stages, "best", run.best, tell)
        return
    for result, place in zip(results, _places(experiment, run.evaluation / "best"), strict=True):
        replace(result, backbone="best").write(place)


def _judge(stages: Stages, name: str, weights: Path, tell: Tell) -> list[Evaluated]:
    """Judge one backbone."""
    experiment, folder = stages.experiment, stages.run.evaluation / name

    def load() -> Backbone:
        return load_backbone(experiment.training.backbone, weights).to(stages.device)

    subject = _subject(stages, name, load, tell)
    if name == "last" and experiment.evaluation:
        portray(subject, stages.run.evaluation)  # first, so that its features are there for the evaluations
    return judge(subject, experiment.evaluation, folder, name, tell)


def _subject(stages: Stages, name: str, load: Callable[[], Backbone], tell: Tell) -> Subject:
    """A backbone of a run, and the images to judge it with."""
    experiment, roles = stages.experiment, stages.sources
    assert roles.labelled is not None
    assert roles.test is not None
    reading = replace(_reading(stages), workers=experiment.training.workers, tell=tell)
    return Subject(load, roles.labelled, roles.test, reading, experiment.seed, stages.run.evaluation / name)


def is_judged(experiment: Experiment, run: RunFolder) -> bool:
    """Whether every evaluation of every backbone of a run has its result."""
    folders = [run.evaluation / name for name in _backbones(run)]
    return all(place.exists() for folder in folders for place in _places(experiment, folder))


def online_probe(stages: Stages) -> Online | None:
    """Return a quick probe of a backbone in training, on held-out training images; None where none are held out."""
    roles = stages.sources
    if roles.bank is None or roles.validation is None:
        return None
    return Online(roles.bank, roles.validation, _reading(stages), stages.experiment.seed)


def _reading(stages: Stages) -> Reading:
    return Reading(stages.experiment.pairs.size, device=stages.device, unreadable=stages.run.quarantine)


def _backbones(run: RunFolder) -> dict[str, Path]:
    """Return the files of the backbones that a training has left, by the names of their results."""
    return {"last": run.backbone} | ({"best": run.best} if run.best.exists() else {})


def _places(experiment: Experiment, folder: Path) -> list[Path]:
    return [folder / f"{name_of(evaluation)}.json" for evaluation in experiment.evaluation]


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same weights, as where the last backbone is the best."""
    first, second = safetensors.torch.load_file(one), safetensors.torch.load_file(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())
