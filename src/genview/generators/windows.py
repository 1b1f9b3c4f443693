"""Random windows of images, for training a generator that works at any size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from genview.errors import UserError
from genview.images import ImageSource, UnreadableImage, opened, square
from genview.seeds import seed_of

SHARPNESS = 2
"""How many times the wanted side an image must measure where it is decoded at a part of its size."""


class Window(NamedTuple):
    """Pixels uint8 3×S×S, or a batch B×3×S×S of them; and images that could not be read, as (key, reason)."""

    pixels: Tensor
    unreadable: tuple[tuple[str, str], ...]


class Windows(Dataset[Window]):
    """Random windows by (epoch, index), the same for the same seed, epoch and key.

    A window of `size` pixels is cut from the centre square of an image that is scaled down to between `size` and
    `zoom` times as much, never up where it is large enough, and mirrored with probability `flip`. In the place of an
    image that cannot be read comes the next one that can.
    """

    def __init__(self, source: ImageSource, size: int, zoom: float, flip: float, seed: int) -> None:
        self.source, self.size, self.zoom, self.flip, self.seed = source, size, zoom, flip, seed
        self.to_tensor = v2.PILToTensor()

    def __getitem__(self, position: tuple[int, int]) -> Window:
        epoch, i = position
        chance = random.Random(seed_of(self.seed, self.source.key(i), epoch, "window"))
        share = chance.random()
        image, unreadable = self._readable(i, share)
        size = self.size
        left, top = (chance.randint(0, image.width - size) for _ in range(2))
        image = image.crop((left, top, left + size, top + size))
        if chance.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Window(self.to_tensor(image), unreadable)

    def _readable(self, i: int, share: float) -> tuple[Image.Image, tuple[tuple[str, str], ...]]:
        """Return the centre square of the first image from `i` on that can be read, scaled by `share` of the zoom."""
        unreadable: list[tuple[str, str]] = []
        for step in range(len(self.source)):
            place = (i + step) % len(self.source)
            try:
                return self._scaled(place, share), tuple(unreadable)
            except UnreadableImage as reason:
                unreadable.append((self.source.key(place), str(reason)))
        raise UserError(f"None of the {len(self.source)} images can be read ({unreadable[0][1]}).")

    def _scaled(self, i: int, share: float) -> Image.Image:
        found = opened(self.source, i)
        shortest = min(found.size)
        side = round(self.size * (1 + share * (max(1.0, min(self.zoom, shortest / self.size)) - 1)))
        shrink = next(factor for factor in (8, 4, 2, 1) if factor == 1 or factor * SHARPNESS * side <= shortest)
        return square(Image.fromarray(found.pixels(shrink)), side)


def together(windows: Sequence[Window]) -> Window:
    """Make a batch of windows."""
    unreadable = tuple(found for window in windows for found in window.unreadable)
    return Window(torch.stack([window.pixels for window in windows]), unreadable)
