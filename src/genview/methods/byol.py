"""BYOL: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import cosine, cosine_to_one, follow, mlp, slow_copy


@dataclass(frozen=True)
class BYOL:
    """First momentum of the target network and widths of projector and predictor."""

    kind: Literal["byol"] = "byol"
    momentum: float = 0.996
    hidden: int = 4096
    embedding: int = 256

    def build(self, backbone: Backbone) -> Learner:
        """Put heads and target network around a backbone."""
        return BYOLLearner(self, backbone)


class BYOLLearner(Learner):
    """Online network: backbone, projector, predictor; target network: the slow copy of the first two."""

    divisible = True

    def __init__(self, method: BYOL, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        hidden, d = method.hidden, method.embedding
        self.projector = mlp([backbone.width, hidden, d], hidden_norm=True, last_norm=False, last_bias=False)
        self.predictor = mlp([d, hidden, d], hidden_norm=True, last_norm=False, last_bias=False)
        self.target = slow_copy(nn.Sequential(backbone, self.projector))
        self._momentum = method.momentum

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """‖p_a − z_b‖² + ‖p_b − z_a‖², all of unit length (equations 2 and 3)."""
        p_a, p_b = (self.predictor(self.projector(self.backbone(x))) for x in (a, b))
        with torch.no_grad():
            z_a, z_b = self.target(a), self.target(b)
        return 4 - 2 * cosine(p_a, z_b) - 2 * cosine(p_b, z_a)

    def after_step(self, progress: float) -> None:
        """Move the target network with a momentum that rises to 1."""
        self._momentum = cosine_to_one(self.method.momentum, progress)
        follow(self.target, nn.Sequential(self.backbone, self.projector), self._momentum)

    def measures(self) -> dict[str, float]:
        """Momentum of the target network."""
        return {"momentum": self._momentum}
