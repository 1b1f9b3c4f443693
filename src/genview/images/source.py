"""What an image source is, and how any file that Pillow reads becomes an RGB image."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class UnreadableImage(Exception):  # noqa: N818 - not an error of the program: the stage records it and goes on
    """An image that cannot be used; the message is the reason, fit for the quarantine list."""


class ImageSource(Protocol):
    """Images in a fixed order, each with a key that is unique in the source.

    A key is the path of the image relative to the root of its source, with forward slashes; never a base name.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order; empty where the source has no labels."""
        ...

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """Key of image `i`."""
        ...

    def image(self, i: int) -> Image.Image:
        """Image `i`, mode RGB, at its own size.

        Raises:
            UnreadableImage: the file is damaged, empty, truncated or absurdly large.
        """
        ...

    def label(self, i: int) -> int | None:
        """Label of image `i` as an index into `classes`, or None where it has none."""
        ...
