"""Originals and their generated views as one source of squares, as the cached pass looks at them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from genview.images.source import ImageSource
from genview.quality.grids import ORIGINAL, place_of


class DrawTable(Protocol):
    """Generated views by key, as `generators.ViewTable` has them."""

    @property
    def draws(self) -> np.ndarray:
        """Draw of each row."""
        ...

    def __len__(self) -> int: ...

    def rows(self, key: str) -> range:
        """Rows of the views of `key`, by draw."""
        ...

    def view(self, row: int) -> tuple[Image.Image, int]:
        """The view of a row, and its level."""
        ...


class Pictures:
    """Some images, each followed by its views, all of them squashed to `size`×`size`.

    Squashed, not cropped: so the shares that a crop's box is given in hold for them as they are.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, source: ImageSource, views: DrawTable | None, images: range | list[int], size: int) -> None:
        self.source, self.views, self.size = source, views, size
        self._which: list[tuple[int, int | None]] = []
        for image in images:
            rows = views.rows(source.key(image)) if views is not None else range(0)
            self._which += [(image, None), *((image, row) for row in rows)]

    def __len__(self) -> int:
        return len(self._which)

    def draw(self, i: int) -> int:
        """Which draw picture `i` is; −1 for an original."""
        row = self._which[i][1]
        return ORIGINAL if row is None or self.views is None else int(self.views.draws[row])

    def place(self, i: int) -> int:
        """Place of picture `i`; they ascend."""
        return place_of(self._which[i][0], self.draw(i))

    def key(self, i: int) -> str:
        """Key of the image, of which a picture may be a view."""
        return self.source.key(self._which[i][0])

    def label(self, i: int) -> int | None:  # noqa: ARG002 - nobody asks for it
        """None."""
        return None

    def whole(self, i: int) -> Image.Image:
        """Picture `i` as it is.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        image, row = self._which[i]
        return self.source.image(image) if row is None or self.views is None else self.views.view(row)[0]

    def image(self, i: int) -> Image.Image:
        """Picture `i`, squashed."""
        return self.whole(i).resize((self.size, self.size), Image.Resampling.BICUBIC)
