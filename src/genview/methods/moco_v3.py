"""MoCo v3: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.distributed import gathered, gathered_rows
from genview.encoders.backbone import Backbone
from genview.encoders.vit import fix_positions, freeze_patch_embedding, is_vit
from genview.methods.method import Learner
from genview.methods.parts import cosine_to_one, follow, in_float32, mlp, slow_copy, unit


@dataclass(frozen=True)
class MoCoV3:
    """Temperature τ, first key momentum, widths of the heads; and, for a ViT only, what of it is not learned.

    What is not learned is said here and not with the backbone: it holds for this pretraining, and an evaluation that
    trains the same backbone further is free to learn all of it.
    """

    kind: Literal["moco_v3"] = "moco_v3"
    temperature: float = 1.0
    momentum: float = 0.99
    hidden: int = 4096
    embedding: int = 256
    frozen_patches: bool = True
    fixed_positions: bool = True

    def build(self, backbone: Backbone) -> Learner:
        """Put heads and key encoder around a backbone.

        Raises:
            UserError: a ViT has no patch embedding to freeze, or no positions to fix.
        """
        return MoCoV3Learner(self, backbone)


class MoCoV3Learner(Learner):
    """f_q: backbone, projector and predictor; f_k: the slow copy of the first two; keys are those of the batch.

    A ViT gets a projector of three layers and BatchNorm at the end of its predictor, a ResNet two layers and none.
    """

    def __init__(self, method: MoCoV3, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        vit = is_vit(backbone.net)
        if vit and method.frozen_patches:
            freeze_patch_embedding(backbone.net)
        if vit and method.fixed_positions:
            fix_positions(backbone.net)
        hidden, d = method.hidden, method.embedding
        widths = [backbone.width, hidden, hidden, d] if vit else [backbone.width, hidden, d]
        self.projector = mlp(widths, hidden_norm=True, last_norm=True)
        self.predictor = mlp([d, hidden, d], hidden_norm=True, last_norm=vit, last_bias=False)
        self.key_encoder = slow_copy(nn.Sequential(backbone, self.projector))
        self._momentum = method.momentum

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """ctr(q_a, k_b) + ctr(q_b, k_a), as in algorithm 1."""
        q_a, q_b = (unit(self.predictor(self.projector(self.backbone(x)))) for x in (a, b))
        with torch.no_grad():
            k_a, k_b = (unit(self.key_encoder(x)) for x in (a, b))
        tau = self.method.temperature
        return contrast_with_keys(q_a, k_b, tau) + contrast_with_keys(q_b, k_a, tau)

    def after_step(self, progress: float) -> None:
        """Move the key encoder with a momentum that rises to 1."""
        self._momentum = cosine_to_one(self.method.momentum, progress)
        follow(self.key_encoder, nn.Sequential(self.backbone, self.projector), self._momentum)

    def measures(self) -> dict[str, float]:
        """Momentum of the key encoder."""
        return {"momentum": self._momentum}


@in_float32
def contrast_with_keys(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """InfoNCE of queries B×D among the keys of the global batch, times 2τ (algorithm 1); B values."""
    logits = q @ gathered(k).T / temperature
    return 2 * temperature * F.cross_entropy(logits, gathered_rows(q), reduction="none")
