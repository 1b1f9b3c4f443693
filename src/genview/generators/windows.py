"""Random windows of images, for training a generator that works at any size."""

from __future__ import annotations

import random

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from genview.errors import UserError
from genview.images import ImageSource, UnreadableImage, square
from genview.seeds import seed_of


class Windows(Dataset[Tensor]):
    """Random windows uint8 3×S×S by (epoch, index), the same for the same seed, epoch and key.

    A window of `size` pixels is cut from the centre square of an image that is scaled down to between `size` and
    `zoom` times as much, never up where it is large enough, and mirrored with probability `flip`.
    """

    def __init__(self, source: ImageSource, size: int, zoom: float, flip: float, seed: int) -> None:
        self.source, self.size, self.zoom, self.flip, self.seed = source, size, zoom, flip, seed
        self.to_tensor = v2.PILToTensor()

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        epoch, i = position
        key = self.source.key(i)
        chance = random.Random(seed_of(self.seed, key, epoch, "window"))
        image = self._readable(i)
        size = self.size
        most = max(1.0, min(self.zoom, min(image.size) / size))
        image = square(image, round(size * chance.uniform(1.0, most)))
        left, top = (chance.randint(0, image.width - size) for _ in range(2))
        image = image.crop((left, top, left + size, top + size))
        if chance.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels: Tensor = self.to_tensor(image)
        return pixels

    def _readable(self, i: int) -> Image.Image:
        for step in range(len(self.source)):
            try:
                return self.source.image((i + step) % len(self.source))
            except UnreadableImage:
                continue
        raise UserError("None of the images can be read.")
