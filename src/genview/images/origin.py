"""Where views come from: image, draw, crop and flip."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from genview.images.opened import Opened


class Origin(NamedTuple):
    """Where the V views of each of B images come from.

    `image` B: index into the source of originals.
    `draw` B×V: number of the generated view that was cropped; −1 where it was the original itself.
    `box` B×V×4: left, top, right and bottom of the crop, as shares of the cropped image's width and height.
    `flipped` B×V: whether the crop was mirrored left to right.
    """

    image: Tensor
    draw: Tensor
    box: Tensor
    flipped: Tensor


class FoundView(NamedTuple):
    """A view that was made of an image: its number among them, its noise level, and the view, not yet decoded."""

    draw: int
    level: int
    image: Opened
