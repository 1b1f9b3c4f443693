"""What a study will cost: what is shared counts once, a training once for every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from genview.experiment.cost import doubts, training_cost, view_costs
from genview.experiment.evaluating import check_evaluations
from genview.experiment.grid import Grid
from genview.experiment.load import dump
from genview.experiment.schema import Experiment, essential
from genview.experiment.sharing import Shared, making_of
from genview.experiment.stages import Stages
from genview.images.source import silent
from genview.report.words import span
from genview.store import RunFolder


def study_cost(grid: Grid) -> Iterator[str]:
    """Yield lines that say how many runs there are, how long they take on this machine one after another, and what
    is written.

    Raises:
        UserError: images, weights or what evaluations name cannot be had.
    """
    for experiment in _evaluated(grid):
        check_evaluations(Stages(experiment, RunFolder(Path())), silent)
    seeds = len(grid.study.seeds)
    yield f"runs: {len(grid.runs)} ({len(grid.runs) // seeds} variants, {seeds} seeds)"
    total, analysed = 0.0, set[Path]()
    for making, count in _makings(grid):
        stages, analysis = Stages(making, RunFolder(Path())), Shared(Path()).analysis(making).root
        yield f"views for {count} runs, noise {making.noise.kind}"
        for item in view_costs(making, stages, len(stages.sources.train)):
            if item.stage != "analyse" or analysis not in analysed:
                total += item.seconds
                yield f"  {item.text}"
        analysed.add(analysis)
    for experiment, count in _trainings(grid):
        images = len(Stages(experiment, RunFolder(Path())).sources.train)
        weighted = experiment.quality is not None
        item = training_cost(experiment.method, experiment.training, experiment.pairs, images, weighted=weighted)
        total += item.seconds * count
        yield f"{count} runs of {experiment.method.kind}, each\n  {item.text}"
        yield from doubts(experiment, images)
    yield f"all: {span(total)} in one process, evaluation apart"


def _makings(grid: Grid) -> list[tuple[Experiment, int]]:
    """Return what makes each set of views, and for how many runs."""
    known: dict[Path, list[Experiment]] = {}
    for run in grid.runs:
        if (making := making_of(run.experiment, grid.seed_of_views)) is not None:
            known.setdefault(Shared(Path()).views(making).root, []).append(making)
    return [(makings[0], len(makings)) for makings in known.values()]


def _evaluated(grid: Grid) -> list[Experiment]:
    """Return an experiment for each set of evaluations, images and backbone."""
    known: dict[str, Experiment] = {}
    for run in grid.runs:
        resolved = dump(run.experiment)
        what = [resolved[name] for name in ("images", "test", "evaluation")] + [resolved["training"]["backbone"]]
        known.setdefault(json.dumps(what, sort_keys=True), run.experiment)
    return list(known.values())


def _trainings(grid: Grid) -> list[tuple[Experiment, int]]:
    """Return an experiment for each training whose steps cost something else, and for how many runs it stands."""
    known: dict[str, list[Experiment]] = {}
    for run in grid.runs:
        resolved = essential(dump(run.experiment))
        what = {name: resolved[name] for name in ("images", "test", "pairs", "method", "training")}
        what["training"] = {**what["training"], "optimizer": None}  # what is timed has none: rates cost the same
        known.setdefault(json.dumps(what, sort_keys=True), []).append(run.experiment)
    return [(experiments[0], len(experiments)) for experiments in known.values()]
