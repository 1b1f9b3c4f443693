"""What training a generator will cost, from a few timed steps on this machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import torch

from genview.distributed import world_size
from genview.experiment.cost import in_bytes, training_cost
from genview.experiment.fit import Fit
from genview.report.words import span
from genview.training.fit import check
from genview.training.trial import trial

TRIAL_STEPS = 2


def fit_cost(work: Fit) -> Iterator[str]:
    """Yield lines that say what there is to train on, how long it will take, and what it needs of memory and disk.

    Raises:
        UserError: the images or the weights cannot be had; better now than after hours.
    """
    experiment, settings = work.experiment, work.experiment.fit
    source, held = work.parts
    yield f"images: {len(source):,} to train on, {len(held)} held out to look at"
    lesson = work.lesson()
    task = work.task(lesson, torch.empty(0))
    check(task, 1)
    if experiment.trains_encoder:
        cost = training_cost(experiment.method, experiment.encoder_training, experiment.pairs, len(source))
        yield cost.replace("pretrain:", "encoder:")
    else:
        work.take_weights(lesson)
        yield f"encoder: taken from {experiment.encoder_weights or settings.start_from}, not trained"
    seconds = trial(task, TRIAL_STEPS)
    rate = settings.batch / seconds
    yield (
        f"generator: {span(seconds * settings.steps)} for {settings.steps:,} steps of {settings.batch} windows "
        f"({rate:,.0f} a second; devices: {world_size()}), without loading and looking"
    )
    result = sum(p.numel() for p in lesson.parameters()) * 2
    trained = sum(p.numel() for p in lesson.parameters() if p.requires_grad)
    state = 2 * result + 3 * 4 * trained
    yield f"memory: {_memory()}; disk: {in_bytes(result)} for the generator, {in_bytes(state)} to continue from"


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{in_bytes(torch.cuda.max_memory_allocated())} of the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} at most so far"
