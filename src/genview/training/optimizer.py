"""Optimizers, and what their rates and decays do in the course of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim._param_groups import param_groups_layer_decay
from timm.optim.lars import Lars as TimmLars
from torch import nn

from genview.methods import Learner

Group = dict[str, Any]
"""Parameters that are treated alike, as torch's optimizers take them."""
NO_SCALES: Mapping[int, float] = {}


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum. `rate` is the rate used, at this batch size: nothing scales it behind one's back.

    The same in all three: `rate_end` and `weight_decay_end` are what cosines lead to by the end (None: the decay
    stays), and `exclude` leaves biases and the scales of norms without decay (and without LARS's adaption).
    """

    kind: Literal["sgd"] = "sgd"
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    rate_end: float = 0.0
    weight_decay_end: float | None = None
    exclude: bool = False

    def build(self, learner: Learner) -> torch.optim.Optimizer:
        """Return the optimizer of a learner's parameters."""
        return self.of(groups(learner, self))

    def of(self, parameters: list[Group]) -> torch.optim.Optimizer:
        """Return the optimizer of parameters that are in groups."""
        return torch.optim.SGD(parameters, self.rate, self.momentum)


@dataclass(frozen=True)
class Lars:
    """LARS (You et al., arXiv 1708.03888) as timm has it: a layer's rate is in proportion to |w| / |gradient|.

    Excluded parameters take plain steps of the full rate, as SimCLR, BYOL and MoCo v3 have it.
    """

    kind: Literal["lars"] = "lars"
    rate: float = 4.8
    momentum: float = 0.9
    weight_decay: float = 1e-6
    rate_end: float = 0.0
    weight_decay_end: float | None = None
    exclude: bool = True
    trust: float = 0.001

    def build(self, learner: Learner) -> torch.optim.Optimizer:
        """Return the optimizer of a learner's parameters."""
        return self.of(groups(learner, self))

    def of(self, parameters: list[Group]) -> torch.optim.Optimizer:
        """Return the optimizer of parameters that are in groups."""
        # Else timm adapts no rate where the decay is 0, as in linear probes.
        adapted = [{**group, "always_adapt": group["decays"]} for group in parameters]
        optimizer: torch.optim.Optimizer = TimmLars(
            adapted, self.rate, momentum=self.momentum, trust_coeff=self.trust
        )
        return optimizer


@dataclass(frozen=True)
class AdamW:
    """AdamW. `layer_decay` multiplies the rate of each layer below the last by one factor more, as timm counts
    the layers of a backbone; 1 treats all alike.
    """

    kind: Literal["adamw"] = "adamw"
    rate: float = 1e-3
    weight_decay: float = 0.1
    rate_end: float = 0.0
    weight_decay_end: float | None = None
    exclude: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0

    def build(self, learner: Learner) -> torch.optim.Optimizer:
        """Return the optimizer of a learner's parameters."""
        return self.of(groups(learner, self, layer_scales(learner, self.layer_decay)))

    def of(self, parameters: list[Group]) -> torch.optim.Optimizer:
        """Return the optimizer of parameters that are in groups."""
        return torch.optim.AdamW(parameters, self.rate, self.betas, foreach=True)


Optimizer = Sgd | Lars | AdamW


def groups(learner: Learner, settings: Optimizer, scales: Mapping[int, float] = NO_SCALES) -> list[Group]:
    """Sort the trainable parameters of a learner into groups; see `grouped`."""
    return grouped(learner.parameters(), settings, scales, learner.fixed_rate())


def grouped(
    parameters: Iterable[nn.Parameter],
    settings: Optimizer,
    scales: Mapping[int, float] = NO_SCALES,
    fixed: Iterable[nn.Parameter] = (),
) -> list[Group]:
    """Sort trainable parameters into groups that are treated alike, in the order in which they first occur.

    A group says whether it is `fixed` (keeps its rate: SimSiam's predictor), its `scale` of the rate, and whether
    its weights decay; `scales` are by `id` of the parameter, 1 where absent.
    """
    kept, found = {id(p) for p in fixed}, dict[tuple[bool, float, bool], list[nn.Parameter]]()
    for parameter in parameters:
        if parameter.requires_grad:
            decays = not (settings.exclude and parameter.ndim <= 1)
            kind = (id(parameter) in kept, scales.get(id(parameter), 1.0), decays)
            found.setdefault(kind, []).append(parameter)
    return [
        {
            "params": members,
            "fixed": keeps,
            "scale": scale,
            "decays": decays,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (keeps, scale, decays), members in found.items()
    ]


def layer_scales(learner: Learner, decay: float) -> dict[int, float]:
    """Return the scale of the rate for each parameter of the backbone, by `id`: 1 at the top."""
    if decay == 1.0:
        return {}
    layers: Iterable[dict[str, Any]] = param_groups_layer_decay(learner.backbone.net, layer_decay=decay)
    return {id(parameter): layer["lr_scale"] for layer in layers for parameter in layer["params"]}


def rate_at(step: int, *, steps: int, warmup: int, peak: float, end: float = 0.0) -> float:
    """Learning rate of step `step` (from 0): linear warm-up to `peak`, then half a cosine to `end`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine((step - warmup) / max(1, steps - warmup), peak, end)


def cosine(share: float, start: float, end: float) -> float:
    """From `start` at share 0 to `end` at share 1, along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def schedule(optimizer: torch.optim.Optimizer, settings: Optimizer, step: int, *, steps: int, warmup: int) -> float:
    """Give every group its rate and decay for step `step`; return the rate of what is not fixed."""
    rate = rate_at(step, steps=steps, warmup=warmup, peak=settings.rate, end=settings.rate_end)
    decay, last = settings.weight_decay, settings.weight_decay_end
    if last is not None:
        decay = cosine(step / steps, decay, last)
    for group in optimizer.param_groups:
        group["lr"] = (settings.rate if group["fixed"] else rate) * group["scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return rate
