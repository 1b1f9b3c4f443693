"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import cosine, mlp


@dataclass(frozen=True)
class SimSiam:
    """Projection of three layers, predictor with a bottleneck, stop-gradient."""

    kind: Literal["simsiam"] = "simsiam"
    projection: int = 2048
    bottleneck: int = 512

    def build(self, backbone: Backbone) -> Learner:
        """Put the heads around a backbone."""
        return SimSiamLearner(self, backbone)


class SimSiamLearner(Learner):
    """f: backbone and projector; h: predictor."""

    divisible = True

    def __init__(self, method: SimSiam, backbone: Backbone) -> None:
        super().__init__()
        d = method.projection
        self.backbone = backbone
        self.projector = mlp([backbone.width, d, d, d], hidden_norm=True, last_norm=True)
        self.predictor = mlp([d, method.bottleneck, d], hidden_norm=True, last_norm=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """½ D(h(z_a), z_b) + ½ D(h(z_b), z_a), D the negative cosine and z held constant (equations 1 to 4)."""
        z_a, z_b = self.projector(self.backbone(a)), self.projector(self.backbone(b))
        p_a, p_b = self.predictor(z_a), self.predictor(z_b)
        return -(cosine(p_a, z_b.detach()) + cosine(p_b, z_a.detach())) / 2

    def fixed_rate(self) -> list[nn.Parameter]:
        """The predictor does not follow the cosine schedule (section 4.2 of the paper)."""
        return list(self.predictor.parameters())
