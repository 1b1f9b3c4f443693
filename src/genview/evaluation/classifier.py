"""A backbone with a linear classifier on top, all of it trained."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.backbone import Backbone
from genview.evaluation.augmented import Example
from genview.evaluation.supervised import Taught
from genview.seeds import seed_of

INITIAL = 0.01
"""Standard deviation of a new classifier's weights (MoCo's linear classification)."""


def linear_head(width: int, classes: int, seed: int) -> nn.Linear:
    """Return a fresh linear classifier that depends on the seed alone: normal weights, no bias."""
    head = nn.Linear(width, classes)
    with torch.no_grad():
        head.weight.copy_(INITIAL * torch.randn(classes, width, generator=torch.Generator().manual_seed(seed)))
        head.bias.zero_()
    return head


class Classifier(Taught):
    """Backbone and head; the loss is the cross-entropy.

    `smoothing` is the share of the target that all classes have alike. With `mixup` α above 0, each image is mixed
    with the one as far from the batch's end as it is from its start, λ of its own from Beta(α, α) for each batch,
    and so are their losses (Zhang et al., mixup, ICLR 2018).
    """

    trained: nn.ModuleDict

    def __init__(
        self, backbone: Backbone, classes: int, seed: int, *, smoothing: float = 0.0, mixup: float = 0.0
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(
            {"backbone": backbone, "head": linear_head(backbone.width, classes, seed_of(seed, "", 0, "head"))}
        )
        self.seed, self.smoothing, self.mixup = seed, smoothing, mixup

    def forward(self, batch: Example, step: int) -> Tensor:
        """Return the mean loss of a batch, as one value in a row."""
        share = self._share(step)
        images = batch.pixels if share == 1.0 else share * batch.pixels + (1 - share) * batch.pixels.flip(0)
        logits = self.logits(images).float()
        losses = [
            part * F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
            for part, labels in ((share, batch.label), (1 - share, batch.label.flip(0)))
            if part
        ]
        return torch.stack(losses).sum(dim=0, keepdim=True)

    def logits(self, images: Tensor) -> Tensor:
        """Images B×3×H×W in [0, 1] → logits B×C."""
        scores: Tensor = self.trained["head"](self.trained["backbone"](images))
        return scores

    def _share(self, step: int) -> float:
        chance = Random(seed_of(self.seed, "", step, "mixup"))
        return chance.betavariate(self.mixup, self.mixup) if self.mixup else 1.0
