"""What a generator of views is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from genview.encoders.frozen import FrozenEncoder

LEVELS = 1000
"""A level is a variation strength in thousandths: 0 is none, 999 the most. It is unCLIP's own noise level."""


class Text(NamedTuple):
    """What a view is to show and what not, in words; empty where there is nothing to say."""

    prompt: str = ""
    negative: str = ""


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

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row; levels, guidances and texts may be mixed freely within the batch.

        Args:
            condition: embeddings B×E, as `encoder` gives them, on any device.
            level: B variation strengths in thousandths, int64 in 0…999; a higher level lets a view stray further
                from its source. A generator maps them monotonically to the knob it has.
            guidance: scales B of classifier-free guidance; 1 is none.
            seeds: B seeds, the only source of randomness: a row depends on its seed, never on its neighbours.
            texts: B texts; the generator's own prompt for every row where None.

        Returns:
            uint8 images B×3×size×size on the CPU. A row whose computation overflowed is black throughout.

        Raises:
            UserError: a level is out of range, or there are texts and the generator does not read any.
        """
        ...

    def exact(self) -> Generator:
        """Return this generator computing in float32 (itself where it does): for rows that came back black."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        ...
