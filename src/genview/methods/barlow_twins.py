"""Barlow Twins: Zbontar et al., "Self-Supervised Learning via Redundancy Reduction", ICML 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genview.distributed import gathered_with_gradient
from genview.encoders.backbone import Backbone
from genview.methods.method import Learner, Losses
from genview.methods.parts import at_least_float32, in_float32, mlp

TINY = 1e-5


@dataclass(frozen=True)
class BarlowTwins:
    """Weight λ of the off-diagonal and width of the three projector layers."""

    kind: Literal["barlow_twins"] = "barlow_twins"
    off_diagonal: float = 0.0051
    projection: int = 8192

    def build(self, backbone: Backbone) -> Learner:
        """Put the projector around a backbone."""
        return BarlowTwinsLearner(self, backbone)


class BarlowTwinsLearner(Learner):
    """f: backbone and projector. No part of the loss belongs to one pair."""

    weighable = False

    def __init__(self, method: BarlowTwins, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        d = method.projection
        self.projector = mlp([backbone.width, d, d, d], hidden_norm=True, last_norm=False, last_bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Losses:
        """Σ (1 − C_ii)² + λ Σ C_ij², C the cross-correlation over the global batch (equations 1 and 2)."""
        z_a, z_b = (at_least_float32(self.projector(self.backbone(x))) for x in (a, b))
        correlation = cross_correlation(gathered_with_gradient(z_a), gathered_with_gradient(z_b))
        return Losses(None, redundancy(correlation, self.method.off_diagonal))


@in_float32
def cross_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Cross-correlation D×D of the columns of x N×D with those of y over the N rows."""
    x, y = ((z - z.mean(dim=0)) * torch.rsqrt(z.var(dim=0, correction=0) + TINY) for z in (x, y))
    return x.T @ y / len(x)


def redundancy(correlation: Tensor, off_diagonal: float) -> Tensor:
    """Squared distance of a matrix D×D from the identity, off the diagonal times `off_diagonal`."""
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + off_diagonal * rest
