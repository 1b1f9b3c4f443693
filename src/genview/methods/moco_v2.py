"""MoCo v2: He et al., "Momentum Contrast", CVPR 2020; Chen et al., "Improved Baselines", arXiv 2003.04297."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genview.distributed import gathered
from genview.encoders.backbone import Backbone
from genview.errors import UserError
from genview.methods.method import Learner
from genview.methods.parts import follow, info_nce, mlp, slow_copy, unit


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
        self._keys: Tensor | None = None

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """InfoNCE of the query of `a` with the key of `b` against the queue."""
        q = unit(self.head(self.backbone(a)))
        with torch.no_grad():
            k = unit(self.key_encoder(b))
        self._keys = k
        return info_nce(q, k, self.queue.clone(), self.method.temperature)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:  # noqa: ARG002 - the momentum is constant
        """Move the key encoder, and put the newest keys in place of the oldest ones."""
        follow(self.key_encoder, nn.Sequential(self.backbone, self.head), self.method.momentum)
        if self._keys is None:
            return
        keys = gathered(self._keys)
        if len(keys) > len(self.queue):
            raise UserError(f"A batch of {len(keys)} does not fit a queue of {len(self.queue)}: raise method.queue.")
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))
        self._keys = None
