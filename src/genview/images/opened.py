"""Images whose size is known before they are decoded, so that only what is needed of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from genview.images.source import ImageSource


class Opened(Protocol):
    """An image whose header has been read; `decode.ImageFile` is one."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        ...

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode to uint8 H×W×3; sides may come divided by up to `shrink` (1, 2, 4 or 8) and rounded up.

        Raises:
            UnreadableImage: it is damaged or truncated.
        """
        ...


@dataclass(frozen=True)
class InMemory:
    """An image that is decoded already: uint8 H×W×3."""

    whole: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.whole.shape[1], self.whole.shape[0]

    def pixels(self, shrink: int = 1) -> np.ndarray:  # noqa: ARG002 - a part of it would cost more than the whole
        """Return it whole, not a copy."""
        return self.whole


@runtime_checkable
class OpensImages(Protocol):
    """A source that can tell the size of an image before it decodes it."""

    def opened(self, i: int) -> Opened:
        """Read image `i` and its header.

        Raises:
            UnreadableImage: it cannot be read, or its header says that it is not to be used.
        """
        ...


def opened(source: ImageSource, i: int) -> Opened:
    """Open image `i` of a source; one that cannot open images decodes it.

    Raises:
        UnreadableImage: see `OpensImages.opened` and `ImageSource.image`.
    """
    return source.opened(i) if isinstance(source, OpensImages) else InMemory(np.array(source.image(i)))
