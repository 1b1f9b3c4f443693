"""Optimizers and the learning rate's schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from genview.methods import Learner


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum. `rate` is the rate used, at this batch size: nothing scales it behind one's back."""

    kind: Literal["sgd"] = "sgd"
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def build(self, learner: Learner) -> torch.optim.Optimizer:
        """Return the optimizer; its second group, if any, keeps its rate (SimSiam's predictor)."""
        fixed = learner.fixed_rate()
        kept = {id(p) for p in fixed}
        moving = [p for p in learner.parameters() if p.requires_grad and id(p) not in kept]
        groups = [{"params": moving, "fixed": False}] + ([{"params": fixed, "fixed": True}] if fixed else [])
        return torch.optim.SGD(groups, self.rate, self.momentum, weight_decay=self.weight_decay)


def rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of step `step` (from 0): linear warm-up to `peak`, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (1 + math.cos(math.pi * share)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give the rate to every parameter group that is not fixed."""
    for group in optimizer.param_groups:
        if not group["fixed"]:
            group["lr"] = rate
