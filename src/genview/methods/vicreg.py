"""VICReg: Bardes, Ponce and LeCun, "Variance-Invariance-Covariance Regularization", ICLR 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genview.distributed import gathered_with_gradient
from genview.encoders.backbone import Backbone
from genview.methods.method import Learner, Losses
from genview.methods.parts import at_least_float32, in_float32, mlp

TINY = 1e-4


@dataclass(frozen=True)
class VICReg:
    """Weights of the three terms (λ, μ, nu in the paper) and width of the three expander layers."""

    kind: Literal["vicreg"] = "vicreg"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    projection: int = 8192

    def build(self, backbone: Backbone) -> Learner:
        """Put the expander around a backbone."""
        return VICRegLearner(self, backbone)


class VICRegLearner(Learner):
    """f: backbone and expander. Invariance belongs to pairs, variance and covariance to the batch."""

    def __init__(self, method: VICReg, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        d = method.projection
        self.expander = mlp([backbone.width, d, d, d], hidden_norm=True, last_norm=False, last_bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Losses:
        """Mean (z_a − z_b)² per pair, and variance and covariance over the global batch, each weighted (eq. 6)."""
        z = [at_least_float32(self.expander(self.backbone(x))) for x in (a, b)]
        everyone = [gathered_with_gradient(view) for view in z]
        variance = torch.stack([variance_hinge(view) for view in everyone]).mean()
        covariance = torch.stack([redundant_covariance(view) for view in everyone]).sum()
        pairs = self.method.invariance * (z[0] - z[1]).square().mean(dim=1)
        return Losses(pairs, self.method.variance * variance + self.method.covariance * covariance)


@in_float32
def variance_hinge(z: Tensor) -> Tensor:
    """Mean over the columns of z N×D of how far their standard deviation falls short of 1 (eq. 1 and 2)."""
    return torch.relu(1 - torch.sqrt(z.var(dim=0) + TINY)).mean()


@in_float32
def redundant_covariance(z: Tensor) -> Tensor:
    """Sum of the squared covariances of different columns of z N×D, over D (eq. 3 and 4)."""
    z = z - z.mean(dim=0)
    covariance = z.T @ z / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
