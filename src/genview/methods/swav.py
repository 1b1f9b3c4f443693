"""SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.distributed import gathered, gathered_rows
from genview.encoders.backbone import Backbone
from genview.methods.method import Learner
from genview.methods.parts import across_views, check_room, encode, enqueue, in_float32, mlp, unit


@dataclass(frozen=True)
class SwAV:
    """Prototypes, temperature τ, Sinkhorn's ε and iterations, the queue and widths of the head.

    `queue` embeddings of each full-size view, over all processes, are kept from the share `queue_from` of the
    training on, and used once they are complete; 0 is no queue. In the first share `frozen_prototypes` of the
    training the prototypes stay as they are.
    """

    kind: Literal["swav"] = "swav"
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    queue: int = 3840
    queue_from: float = 0.075
    frozen_prototypes: float = 0.005
    hidden: int = 2048
    embedding: int = 128

    def build(self, backbone: Backbone) -> Learner:
        """Put head, prototypes and queue around a backbone."""
        return SwAVLearner(self, backbone)


class SwAVLearner(Learner):
    """f: backbone and projector; C: prototypes of unit length; a queue of embeddings to balance the codes with."""

    queue: Tensor
    oldest: Tensor
    filled: Tensor
    takes = "crops"

    def __init__(self, method: SwAV, backbone: Backbone) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        d = method.embedding
        self.projector = mlp([backbone.width, method.hidden, d], hidden_norm=True, last_norm=False)
        self.prototypes = nn.Parameter(unit(torch.randn(method.prototypes, d)))
        self.register_buffer("queue", torch.zeros(2, method.queue, d))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self._fresh: Tensor | None = None

    def forward(self, a: Tensor, b: Tensor, *small: Tensor) -> Tensor:
        """Every view predicts the codes of both full-size views, its own apart (equations 1, 2 and 6)."""
        views = (a, b, *small)
        z = unit(self.projector(encode(self.backbone, views))).unflatten(0, (len(views), -1))
        return across_views(self._codes(z[:2].detach()), log_predictions(z, self.prototypes, self.method.temperature))

    @torch.no_grad()
    def _codes(self, z: Tensor) -> Tensor:
        """Codes 2×B×K of embeddings 2×B×D, balanced over the global batch and, once complete, the queue."""
        everyone = torch.stack([gathered(view) for view in z])
        if self.training:
            self._fresh = everyone
        queued = self.queue if self.method.queue and bool(self.filled >= self.method.queue) else self.queue[:, :0]
        method, here = self.method, gathered_rows(z[0]) + queued.shape[1]
        rows = torch.cat([queued.to(everyone.dtype), everyone], dim=1)
        return torch.stack(
            [sinkhorn(view, self.prototypes, method.epsilon, method.iterations)[here] for view in rows]
        )

    def before_step(self, progress: float) -> None:
        """Keep the prototypes as they are in the first share of the training."""
        if progress < self.method.frozen_prototypes:
            self.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Bring the prototypes back to unit length, and queue the embeddings once it is time."""
        self.prototypes.copy_(unit(self.prototypes))
        fresh, self._fresh = self._fresh, None
        if fresh is None or not self.method.queue:
            return
        check_room(self.queue, fresh.shape[1])
        if progress > self.method.queue_from:
            enqueue(self.queue, self.oldest, fresh)
            self.filled.add_(fresh.shape[1]).clamp_(max=self.method.queue)


@in_float32
def log_predictions(z: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Log-softmax over K prototypes K×D of the scores of z …×D (eq. 2); …×K."""
    return F.log_softmax(z @ prototypes.T / temperature, dim=-1)


@in_float32
def sinkhorn(z: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes N×K of embeddings z N×D: soft assignments to prototypes K×D that use each prototype alike (eq. 3 to 5).

    Starting from exp(scores/ε), every iteration makes all columns sum to N/K, then all rows to 1.
    """
    scores = z @ prototypes.T / epsilon
    codes = torch.exp(scores - scores.max())
    for _ in range(iterations):
        codes = codes / codes.sum(dim=0) * len(codes) / codes.shape[1]
        codes = codes / codes.sum(dim=1, keepdim=True)
    return codes
