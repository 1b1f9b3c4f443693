"""What a frozen encoder is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Result of one pass: `tokens` B×N×D and `embedding` B×E, both float32; `grid` (h, w) with N = h·w."""

    tokens: Tensor
    embedding: Tensor
    grid: tuple[int, int]


class FrozenEncoder(Protocol):
    """Turns images into tokens and an embedding; never trained, never in a checkpoint, in eval mode for ever."""

    name: str
    size: int
    """Side in pixels of the square images it was made for; analysis resizes and crops to it."""

    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; resizes to its own size where needed and applies its own statistics."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        ...
