"""SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import contrast, encode, mlp, unit


@dataclass(frozen=True)
class SimCLR:
    """Temperature τ and widths of the head."""

    kind: Literal["simclr"] = "simclr"
    temperature: float = 0.1
    hidden: int = 2048
    embedding: int = 128

    def build(self, backbone: Backbone) -> Learner:
        """Put the head around a backbone."""
        return SimCLRLearner(self, backbone)


class SimCLRLearner(Learner):
    """f: backbone; g: projector."""

    def __init__(self, method: SimCLR, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        self.projector = mlp([backbone.width, method.hidden, method.embedding], hidden_norm=True, last_norm=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """NT-Xent among both views of the global batch, the mean of the pair's two anchors (eq. 1)."""
        z = unit(self.projector(encode(self.backbone, [a, b])))
        return contrast(z.unflatten(0, (2, -1)), self.method.temperature).squeeze(1)
