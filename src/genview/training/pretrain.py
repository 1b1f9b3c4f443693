"""Pretraining: put learner, optimizer, state and pairs together, and go through the steps that are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import nn

from genview.distributed import rank, world_size
from genview.encoders.backbone import Backbone, check_images, export
from genview.encoders.pretrained import OF_TRAINING, trunk_weights
from genview.errors import UserError
from genview.methods import Learner, Method
from genview.pairs import Pairs, PairSettings
from genview.seeds import seed_of
from genview.store import RunFolder, sweep
from genview.training.batchnorm import synchronised
from genview.training.best import Best
from genview.training.devices import make_fabric, own_buffers
from genview.training.loop import Loop, Probe, Weigh
from genview.training.record import Record, Tell
from genview.training.settings import Plan, TrainSettings, plan_of, share_of
from genview.training.state import TrainState

__all__ = ["Plan", "Probe", "Tell", "TrainSettings", "Weigh", "make_fabric", "plan_of", "pretrain"]


def pretrain(
    method: Method,
    pairs: Pairs,
    settings: TrainSettings,
    run: RunFolder,
    *,
    weigh: Weigh | None,
    probe: Probe | None,
    tell: Tell,
) -> Backbone:
    """Train a backbone on pairs, continuing from the run's checkpoint where there is one.

    Writes measures, checkpoints, example pairs, and at the end `backbone.safetensors`, and, where there is a probe,
    the backbone of which it had the best score as `best.safetensors`. With several processes, each calls this with
    the same arguments; the first one writes. `tell` is told which of the weights to start from are left out.

    Raises:
        UserError: settings that cannot work, a full disk, or a loss that is not finite.
    """
    fabric = make_fabric(settings)
    plan = plan_of(settings, pairs.epoch)
    share_of(settings, world_size())
    torch.manual_seed(seed_of(pairs.seed, "", 0, "weights"))
    begun = (run.checkpoints / "last.pt").exists()
    anew = replace(settings, start_from=None) if begun else settings  # the file may be gone by now
    learner = built(
        method,
        anew,
        pairs.settings,
        fabric,
        weighted=weigh is not None,
        say=lambda line: tell("weights", 1, 1, line),
    )
    optimizer = settings.optimizer.build(learner)
    state = TrainState(learner, optimizer, fabric.strategy.precision)
    best = _continued(run, state, fabric.device)
    on_gpu = settings.augment == "auto" and fabric.device.type == "cuda"
    pairs.looks_on_device = on_gpu or settings.augment == "device"
    module, wrapped = fabric.setup(learner, optimizer)
    own_buffers(module)
    with Record(run, settings, plan.steps, state.step, tell) as record:
        Loop(fabric, module, wrapped, state, settings, plan, record, weigh, probe, pairs, best).run_through()
    if rank() == 0:
        best.finish(run.best)
        export(learner.backbone, run.backbone)
    fabric.barrier()
    return learner.backbone


def _continued(run: RunFolder, state: TrainState[Learner], device: torch.device) -> Best:
    """Bring the state to the run's checkpoint, forget what was measured after it, and find the best so far."""
    last, reached = run.checkpoints / "last.pt", -1  # without a checkpoint the start is seen again, too
    if last.exists():
        state.load(last, device)
        reached = state.step
    if rank() > 0:
        return Best(run.checkpoints)
    sweep(run.checkpoints)
    run.forget_after(reached, ("train/", "online/", "quality/"))
    return Best.continued(run.checkpoints, reached)


def built(
    method: Method,
    settings: TrainSettings,
    views: PairSettings,
    fabric: Fabric,
    *,
    weighted: bool,
    say: Callable[[str], object] | None = None,
) -> Learner:
    """Build the learner as the settings want it, on its device; `say` is told which given weights are left out.

    Raises:
        UserError: method and settings do not go together, the backbone does not take views of that size, or the
            weights to start from cannot be had or do not fit.
    """
    backbone = Backbone(settings.backbone)
    check_images(backbone, views.size, "pairs.size")
    if settings.start_from is not None:  # before a teacher copies it
        backbone.net.load_state_dict(trunk_weights(settings.backbone, settings.start_from, OF_TRAINING, say))
    learner = method.build(backbone)
    kind = getattr(method, "kind", type(method).__name__)  # one of the user's own needs none
    check_views(learner, views, kind)
    if views.crops is not None:
        check_images(backbone, views.crops.size, "pairs.crops.size")
    check(learner, settings, weighted=weighted, kind=kind)
    learner.to(fabric.device)
    if settings.batchnorm == "global" and world_size() > 1:
        synchronised(learner)
    learner.to(memory_format=torch.channels_last)  # a fifth faster on CPU too
    if settings.compile:
        for part in learner.modules():
            if isinstance(part, Backbone):
                part.net.compile(dynamic=False)
    return learner


def check_views(learner: Learner, views: PairSettings, kind: str) -> None:
    """See that a learner takes the views that pairs are to have.

    Raises:
        UserError: it takes fewer, or none of another size.
    """
    if views.positives > 2 and learner.takes != "many":
        raise UserError(
            f"{kind} takes two full-size views of an image, and pairs.positives is {views.positives}. Set it to 2, "
            "or take method multi_positive."
        )
    if views.crops is not None and learner.takes != "crops":
        raise UserError(f"{kind} takes no small crops. Set pairs.crops=null, or take method swav or dino.")


def check(learner: Learner, settings: TrainSettings, *, weighted: bool, kind: str) -> None:
    """See that a learner can be trained so.

    Raises:
        UserError: it cannot be weighted, or not be trained on parts of a batch.
    """
    if weighted and not learner.weighable:
        raise UserError(
            f"The loss of {kind} is one for the whole batch and has no part that belongs to a single pair, so pairs "
            "cannot be weighted. Set quality: null, or take a method with losses per pair."
        )
    if settings.accumulate == 1:
        return
    if not learner.divisible:
        raise UserError(
            f"The loss of a pair in {kind} looks at the other pairs of the batch, so training.accumulate="
            f"{settings.accumulate} would not give what the whole batch gives. Set it to 1, lower training.batch, or "
            "take a method with a queue or without negatives (moco_v2, byol, simsiam, dino)."
        )
    norms = [name for name, part in learner.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and settings.batchnorm == "global":
        raise UserError(
            f"BatchNorm ({norms[0]} and {len(norms) - 1} more) would take its statistics from each of the "
            f"{settings.accumulate} parts and not from the whole batch. Set training.batchnorm=local to have it so, "
            "or training.accumulate=1."
        )
