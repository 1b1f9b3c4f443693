"""Who weighs the pairs of an experiment, and what that one has to look at first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from genview.encoders import FrozenEncoder, load_frozen
from genview.errors import UserError
from genview.experiment.load import dump
from genview.foreground import Analysis, Direction, fit_direction
from genview.quality import (
    CachedQuality,
    Caching,
    ExactWeigher,
    MaskedWeigher,
    MaskQuality,
    QualitySettings,
    cache,
    gather_masks,
)
from genview.training import plan_of
from genview.training.duration import steps_of
from genview.training.pretrain import Tell, Weigh

if TYPE_CHECKING:
    from genview.experiment.stages import Stages


def weigher(stages: Stages, tell: Tell) -> Weigh | None:
    """Return who weighs the pairs, None where all count alike; what is fitted for it is kept in the run folder.

    Raises:
        UserError: an encoder, a direction or masks cannot be had.
    """
    experiment, run = stages.experiment, stages.run
    if experiment.quality is None:
        return None
    settings = experiment.quality.begun(lambda duration: _share(stages, duration))
    if settings.encoder == "generator":
        encoder, folder = stages.generator.encoder, run.analysis
    else:
        encoder, folder = load_frozen(settings.encoder).to(stages.device), run.quality
    direction = _direction(stages, settings, encoder, folder, tell).vector.to(stages.device)
    looking, identity = stages.looking(encoder, tell), {"images": dump(experiment)["images"]}
    match settings:
        case CachedQuality():
            if experiment.views is not None:
                raise UserError("quality.kind cached is for views in the run: take kind exact for other images.")
            caching = Caching(looking, stages.view_table, direction, settings, experiment.pairs.size)
            return cache(caching, run.quality / "maps", seed=experiment.seed, identity=identity)
        case MaskQuality():
            masks = gather_masks(looking, Path(settings.masks), run.quality / "masks", identity=identity)
            return MaskedWeigher(encoder, direction, masks, settings)
        case _:
            return ExactWeigher(encoder, direction, settings)


def _share(stages: Stages, duration: str) -> float:
    """A duration as a share of the training."""
    training, images = stages.experiment.training, len(stages.sources.train)
    return steps_of(duration, images=images, batch=training.batch) / plan_of(training, images).steps


def _direction(
    stages: Stages, settings: QualitySettings, encoder: FrozenEncoder, folder: Path, tell: Tell
) -> Direction:
    """The given direction, or the one that was or is now fitted for this encoder."""
    if settings.direction is not None:
        return Direction.from_npy(settings.direction)
    if not (folder / "summary.json").exists():
        looking = stages.looking(encoder, tell)
        plain = replace(looking, settings=replace(looking.settings, direction=None, sign="auto"))
        fit_direction(plain, folder, seed=stages.experiment.seed)
    return Analysis(folder).direction()
