"""What an experiment will cost, from a short timed trial on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from genview.experiment.evaluating import check_evaluations
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.generators import Img2ImgSettings
from genview.generators.shard import encoded
from genview.generators.trial import batch_for, trial
from genview.images import batches
from genview.images.source import silent
from genview.methods import Method, MoCoV2
from genview.pairs import PairSettings
from genview.report.words import span
from genview.training import TrainSettings
from genview.training.duration import steps_of
from genview.training.loop import combined
from genview.training.pretrain import built, make_fabric
from genview.training.settings import share_of

OWN_NEGATIVES = 0.2
"""Keys of an image itself in a queue, on average, from which on it is told. On CIFAR-10, one seed, a
queue with 0.46 had 2 points of kNN accuracy less than a shorter one with 0.11 (docs/results.md)."""
LONG = 2.0
"""Seconds after which a call is not timed again."""


class Item(NamedTuple):
    """A stage, what it costs in words, and its seconds."""

    stage: str
    words: str
    seconds: float

    @property
    def text(self) -> str:
        """Stage and words."""
        return f"{self.stage}: {self.words}"


def cost(experiment: Experiment, stages: Stages) -> Iterator[str]:
    """Yield lines that say how long each stage will take and what it will write.

    Raises:
        UserError: images, weights or what evaluations name cannot be had; better now than in the middle of a run.
    """
    images = len(stages.sources.train)
    held = stages.sources.validation
    check_evaluations(stages, silent)
    yield f"images: {images:,} to train on" + (f", {len(held):,} held out to choose the best by" if held else "")
    if experiment.generator is not None:
        yield from (item.text for item in view_costs(experiment, stages, images))
    weighted = experiment.quality is not None
    yield training_cost(experiment.method, experiment.training, experiment.pairs, images, weighted=weighted).text
    yield from doubts(experiment, images)
    if experiment.baseline:
        yield "baseline: the same again, without weighing"


def view_costs(experiment: Experiment, stages: Stages, images: int) -> Iterator[Item]:
    """Time one batch, and yield what it costs to analyse and to generate.

    Raises:
        UserError: the weights cannot be had.
    """
    generator, settings = stages.generator, experiment.generator
    assert settings is not None
    batch = min(batch_for(generator, settings.batch, stages.device), images)
    size = generator.encoder.size
    pixels = next(batches(stages.sources.train, size=size, batch=batch, unreadable=lambda *_: None)).images
    encode = _seconds(lambda: generator.encoder.encode(pixels.to(stages.device))) / len(pixels)
    passes = 1 + 2 * min(experiment.foreground.sample, images) / images
    seconds = encode * images * passes
    yield Item("analyse", f"{span(seconds)} and reading the images ({1 / encode:,.0f} images/s)", seconds)
    condition = generator.encoder.encode(pixels.to(stages.device)).embedding.cpu()
    kind = experiment.generate.format
    found = trial(generator, condition, settings.guidance, lambda view: encoded(view, kind))
    count = images * experiment.generate.draws
    rate = f"{1 / found.seconds:,.2f} views/s in batches of {batch}"
    if isinstance(settings, Img2ImgSettings):
        shown = torch.tensor([0, 200, 400, 999])
        strengths = ", ".join(f"{strength:.2f}" for strength in settings.strength(shown).tolist())
        yield Item("levels", f"{', '.join(map(str, shown.tolist()))} are strengths {strengths}", 0.0)
    seconds = found.seconds * count
    yield Item("generate", f"{span(seconds)} ({rate}), about {in_bytes(found.bytes * count)} on disk", seconds)


def training_cost(
    method: Method, settings: TrainSettings, pairs: PairSettings, images: int, *, weighted: bool = False
) -> Item:
    """Time one step, and return what a training costs.

    Raises:
        UserError: the settings do not go together, or there are too few images.
    """
    fabric, said = make_fabric(settings), list[str]()
    learner = built(method, settings, pairs, fabric, weighted=weighted, say=said.append)
    module = fabric.setup_module(learner)
    batch = min(share_of(settings, fabric.world_size), images)
    sides = [pairs.size] * pairs.positives + ([pairs.crops.size] * pairs.crops.count if pairs.crops else [])
    views = [torch.rand(batch, 3, side, side, device=fabric.device) for side in sides]
    parts = settings.accumulate
    steps = steps_of(settings.length, images=images, batch=settings.batch)
    seconds = steps * parts * _seconds(lambda: fabric.backward(combined(module(*views), None)[0]))
    words = f"{span(seconds)} for {steps:,} steps of {settings.batch}, without weighing and loading"
    if settings.start_from is not None:
        words += ". ".join((f"; from the weights {settings.start_from}, which fit", *said))
    return Item("pretrain", words, seconds)


def doubts(experiment: Experiment, images: int) -> Iterator[str]:
    """Yield a line for each setting that can hardly be meant."""
    yield from own_negatives(experiment.method, images, experiment.training.batch)
    yield from views_too_late(experiment, images)
    yield from warmup_too_long(experiment.training, images)


def own_negatives(method: Method, images: int, batch: int) -> Iterator[str]:
    """Yield a line if the queue of MoCo v2 is so long that images meet keys of their own among their negatives."""
    if not isinstance(method, MoCoV2):
        return
    fitting, own = max(batch, int(OWN_NEGATIVES * images)), method.queue / images
    if method.queue > fitting:
        yield (
            f"method.queue: among {method.queue:,} keys of {images:,} images, {own:.1f} are of the image itself and "
            f"taken for negatives all the same. Write method.queue: {fitting}"
        )


def views_too_late(experiment: Experiment, images: int) -> Iterator[str]:
    """Yield a line if the training ends before the epoch from which pairs have a generated, or other, view."""
    training, first = experiment.training, experiment.pairs.views_from
    epochs = steps_of(training.length, images=images, batch=training.batch) / (images // training.batch)
    if first >= epochs and (experiment.generator or experiment.views):
        yield (
            f"pairs.views_from: the training has {epochs:g} epochs and no epoch {first}, so all its pairs are of the "
            "originals. Lower it, or lengthen training.length"
        )


def warmup_too_long(training: TrainSettings, images: int) -> Iterator[str]:
    """Yield a line if the training ends before its rate has risen."""
    steps, warmup = (
        steps_of(text, images=images, batch=training.batch) for text in (training.length, training.warmup)
    )
    if warmup >= steps:
        yield (
            f"training.warmup: it takes {training.warmup}, and the training {training.length}, so it never gets to "
            "optimizer.rate. Shorten it, or lengthen training.length"
        )


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of a call, after one that warms up: of the fastest of three, as other work on the machine only slows
    them, or of the only one where it takes long.
    """
    work()
    calls: list[float] = []
    while len(calls) < 3 and sum(calls) < LONG:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        calls.append(time.perf_counter() - start)
    return min(calls)


def in_bytes(count: float) -> str:
    """Return a size in the unit that suits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
