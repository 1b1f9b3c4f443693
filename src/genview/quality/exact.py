"""Exact quality: the frozen encoder looks at every view of every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genview.encoders import FrozenEncoder
from genview.images.origin import Origin
from genview.quality.similarity import Quality, full_size, pair_quality
from genview.quality.weighting import Weighting


class ExactWeigher:
    """Weigh pairs of images with a frozen encoder. A plain class: it is in no checkpoint and has no train mode."""

    def __init__(self, encoder: FrozenEncoder, direction: Tensor, weighting: Weighting | None = None) -> None:
        self.encoder, self.direction, self.weighting = encoder, direction, weighting or Weighting()

    def __call__(self, views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG002
        """Quality of every pair of the views of full size, B×3×S×S in [0, 1] each; each is encoded once."""
        shown = full_size(views)
        tokens = self.encoder.encode(torch.cat(shown)).tokens.chunk(len(shown))
        return pair_quality(tokens, self.direction, self.weighting, progress)
