"""MoCo v2: He et al., "Momentum Contrast", CVPR 2020; Chen et al., "Improved Baselines", arXiv 2003.04297."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.distributed import gathered
from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import enqueue, follow, in_float32, mlp, slow_copy, unit


@dataclass(frozen=True)
class MoCoV2:
    """Queue length, key momentum, temperature τ and width of the embedding."""

    kind: Literal["moco_v2"] = "moco_v2"
    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    embedding: int = 128

    def build(self, backbone: Backbone) -> Learner:
        """Put head, key encoder and queue around a backbone."""
        return MoCoV2Learner(self, backbone)


class MoCoV2Learner(Learner):
    """f_q: backbone and head; f_k: their slow copy; a queue of keys as negatives.

    Keys are not shuffled between devices: with one process there is nothing to shuffle, and with several
    BatchNorm is to be synchronised.
    """

    queue: Tensor
    oldest: Tensor
    divisible = True

    def __init__(self, method: MoCoV2, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        self.head = mlp([backbone.width, backbone.width, method.embedding], hidden_norm=False, last_norm=False)
        self.key_encoder = slow_copy(nn.Sequential(backbone, self.head))
        self.register_buffer("queue", unit(torch.randn(method.queue, method.embedding)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self._keys: list[Tensor] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """InfoNCE of the query of `a` with the key of `b` against the queue."""
        q = unit(self.head(self.backbone(a)))
        with torch.no_grad():
            k = unit(self.key_encoder(b))
        if self.training:
            self._keys.append(k)
        return info_nce(q, k, self.queue.clone(), self.method.temperature)

    def after_step(self, progress: float) -> None:  # noqa: ARG002 - the momentum is constant
        """Move the key encoder, and put the keys of all passes since the last step in place of the oldest ones."""
        follow(self.key_encoder, nn.Sequential(self.backbone, self.head), self.method.momentum)
        if self._keys:
            enqueue(self.queue, self.oldest, gathered(torch.cat(self._keys)))
        self._keys.clear()


@in_float32
def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE per pair with the negatives of a queue (MoCo, eq. 1).

    Args:
        q: queries B×D, unit length.
        k: their positive keys B×D, unit length.
        negatives: keys K×D of other images, unit length.
        temperature: τ.

    Returns:
        −log( exp(q·k/τ) / (exp(q·k/τ) + Σ exp(q·n/τ)) ), B values.
    """
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device), reduction="none")
