"""From tokens to masks: how much of an image is foreground, and how strongly each token is."""

from __future__ import annotations

from torch import Tensor

from genview.foreground.direction import Direction

TINY = 1e-7


def foreground_ratio(tokens: Tensor, direction: Direction, threshold: float) -> Tensor:
    """Share of an image's tokens above the threshold: tokens B×N×D → B in [0, 1], float32 (GenView, eq. 7)."""
    return (direction.scores(tokens) > threshold).float().mean(dim=1)


def soft_mask(scores: Tensor) -> Tensor:
    """Scores B×N stretched to [0, 1] within each image: (a − min) / (max − min + 1e-7)."""
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return (scores - low) / (high - low + TINY)
