"""Multi-positive contrast: Tian et al., "StableRep", NeurIPS 2023; weighted, the image loss of GenView++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import contrast, encode, mlp, unit


@dataclass(frozen=True)
class MultiPositive:
    """Temperature τ and widths of the three-layer head."""

    kind: Literal["multi_positive"] = "multi_positive"
    temperature: float = 0.1
    hidden: int = 4096
    embedding: int = 256

    def build(self, backbone: Backbone) -> Learner:
        """Put the head around a backbone."""
        return MultiPositiveLearner(self, backbone)


class MultiPositiveLearner(Learner):
    """f: backbone; g: projector. Every view of an image is a positive of every other."""

    takes = "many"

    def __init__(self, method: MultiPositive, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        widths = [backbone.width, method.hidden, method.hidden, method.embedding]
        self.projector = mlp(widths, hidden_norm=True, last_norm=False)

    def forward(self, *views: Tensor) -> Tensor:
        """Cross-entropy with a target uniform over the other views, split into pairs of views: B×P."""
        z = unit(self.projector(encode(self.backbone, views)))
        return contrast(z.unflatten(0, (len(views), -1)), self.method.temperature)
