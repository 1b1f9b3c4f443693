"""The training steps of `training_step.py`, written with lightly's heads, losses and helpers, as its examples are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import lightly.loss as losses
import torch
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

Forward = Callable[[Sequence[Tensor]], Tensor]
MOMENTUM = 0.99


class Step(nn.Module):
    """A method of lightly around a backbone; `forward` gives the loss of a batch of views."""

    def __init__(self, name: str, backbone: nn.Module, width: int, numbers: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.numbers = backbone, numbers
        self.slow: nn.ModuleList | None = None
        getattr(self, name)(width)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Momentum first, where there is one, as in lightly's examples; then the loss."""
        if self.slow is not None:
            for fast, slow in zip(self.fast, self.slow, strict=True):
                update_momentum(fast, slow, MOMENTUM)
        return self.loss(views)

    def _copied(self, *parts: nn.Module) -> None:
        self.fast = parts
        self.slow = nn.ModuleList(copy.deepcopy(part) for part in parts)
        deactivate_requires_grad(self.slow)

    @torch.no_grad()
    def _slow(self, x: Tensor) -> Tensor:
        assert self.slow is not None
        for part in self.slow:
            x = part(x)
        return x.detach()

    def moco_v2(self, width: int) -> None:
        self.head = heads.MoCoProjectionHead(width, width, self.numbers["embedding"])
        criterion = losses.NTXentLoss(
            self.numbers["temperature"], memory_bank_size=(self.numbers["queue"], self.numbers["embedding"])
        )
        self._copied(self.backbone, self.head)
        self.loss: Forward = lambda v: criterion(self.head(self.backbone(v[0])), self._slow(v[1]))

    def simclr(self, width: int) -> None:
        self.head = heads.SimCLRProjectionHead(width, self.numbers["hidden"], self.numbers["embedding"])
        criterion = losses.NTXentLoss(self.numbers["temperature"])
        self.loss = lambda v: criterion(*(self.head(self.backbone(x)) for x in v))

    def byol(self, width: int) -> None:
        hidden, d = self.numbers["hidden"], self.numbers["embedding"]
        self.head, self.predictor = heads.BYOLProjectionHead(width, hidden, d), heads.BYOLPredictionHead(d, hidden, d)
        self._copied(self.backbone, self.head)
        self.loss = self._predicted

    def simsiam(self, width: int) -> None:
        d, bottleneck = self.numbers["projection"], self.numbers["bottleneck"]
        self.head = heads.SimSiamProjectionHead(width, d, d)
        self.predictor = heads.SimSiamPredictionHead(d, bottleneck, d)
        self.loss = self._predicted

    def _predicted(self, v: Sequence[Tensor]) -> Tensor:
        z = [self.head(self.backbone(x)) for x in v]
        p = [self.predictor(x) for x in z]
        targets = [x.detach() for x in z] if self.slow is None else [self._slow(x) for x in v]
        criterion = losses.NegativeCosineSimilarity()
        half: Tensor = (criterion(p[0], targets[1]) + criterion(p[1], targets[0])) / 2
        return half

    def swav(self, width: int) -> None:
        self.head = heads.SwaVProjectionHead(width, self.numbers["hidden"], self.numbers["embedding"])
        self.prototypes = heads.SwaVPrototypes(self.numbers["embedding"], self.numbers["prototypes"])
        criterion = losses.SwaVLoss(self.numbers["temperature"])

        def loss(v: Sequence[Tensor]) -> Tensor:
            self.prototypes.normalize()
            scores = [self.prototypes(nn.functional.normalize(self.head(self.backbone(x)), dim=1)) for x in v]
            found: Tensor = criterion(scores[:2], scores[2:])
            return found

        self.loss = loss

    def dino(self, width: int) -> None:
        hidden, d, out = (self.numbers[name] for name in ("hidden", "bottleneck", "outputs"))
        self.head, teacher = (heads.DINOProjectionHead(width, hidden, d, out) for _ in range(2))
        teacher.load_state_dict(self.head.state_dict())  # its weight norm cannot be copied
        self.fast, self.slow = (self.backbone, self.head), nn.ModuleList([copy.deepcopy(self.backbone), teacher])
        deactivate_requires_grad(self.slow)
        criterion = losses.DINOLoss(output_dim=out)
        self.loss = lambda v: criterion(
            [self._slow(x) for x in v[:2]], [self.head(self.backbone(x)) for x in v], epoch=0
        )

    def barlow_twins(self, width: int) -> None:
        d = self.numbers["projection"]
        self.head, criterion = heads.BarlowTwinsProjectionHead(width, d, d), losses.BarlowTwinsLoss()
        self.loss = lambda v: criterion(*(self.head(self.backbone(x)) for x in v))

    def vicreg(self, width: int) -> None:
        d = self.numbers["projection"]
        self.head, criterion = heads.VICRegProjectionHead(width, d, d), losses.VICRegLoss()
        self.loss = lambda v: criterion(*(self.head(self.backbone(x)) for x in v))
