"""What a generator of views is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from genview.encoders.frozen import FrozenEncoder


class Generator(Protocol):
    """Makes a new view of an image from nothing but its embedding; touches no disk once it is loaded."""

    name: str
    """Says which weights these are."""

    size: int
    """Side in pixels of the square views."""

    @property
    def encoder(self) -> FrozenEncoder:
        """The encoder whose embeddings are the condition."""
        ...

    def sample(self, condition: Tensor, level: Tensor, guidance: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make one view a row; levels and guidances may be mixed freely within the batch.

        Args:
            condition: embeddings B×E, as `encoder` gives them, on any device.
            level: noise levels B, int64; a higher level lets a view stray further from its source.
            guidance: scales B of classifier-free guidance; 1 is none.
            seeds: B seeds, the only source of randomness: a row depends on its seed, never on its neighbours.

        Returns:
            uint8 images B×3×size×size on the CPU.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        ...
