"""Batches of squared images, in order, for everything that looks at images without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from genview.errors import UserError
from genview.images.source import ImageSource, UnreadableImage

Unreadable = Callable[[str, str], None]

LONGEST = 8
"""Images longer than this many times their shortest side are cropped before they are resized."""


class Batch(NamedTuple):
    """Indices of the images in their source, and the images, float32 B×3×S×S in [0, 1]."""

    indices: Tensor
    images: Tensor


def square(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shortest side is `size` (bicubic, antialiased), and crop the centre square."""
    shortest = min(image.size)
    if max(image.size) > LONGEST * shortest:
        # Enlarged whole, a strip of one pixel's height would fill the memory; only its middle is kept anyway.
        image = _middle(image, *(min(side, LONGEST * shortest) for side in image.size))
    width, height = (max(size, round(side * size / shortest)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def batches(
    source: ImageSource,
    *,
    size: int,
    batch: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[Batch]:
    """Yield the images of a source, squared to `size`, in order.

    Args:
        source: where the images come from.
        size: side in pixels.
        batch: images a batch; the last one may be shorter, and any that has unreadable images.
        workers: processes that decode.
        indices: which images; all where None.
        unreadable: is told key and reason of an image that cannot be read, which is then left out.

    Raises:
        UserError: an image cannot be read and there is no `unreadable`.
    """
    chosen = range(len(source)) if indices is None else indices
    loader = DataLoader(_Squares(source, chosen, size), batch, num_workers=workers, collate_fn=list)
    for rows in loader:
        good: list[tuple[int, Tensor]] = []
        for index, pixels in rows:
            if isinstance(pixels, Tensor):
                good.append((index, pixels))
            elif unreadable is None:
                raise UserError(f"The image '{source.key(index)}' cannot be used: {pixels}.")
            else:
                unreadable(source.key(index), pixels)
        if good:
            yield Batch(torch.tensor([i for i, _ in good]), torch.stack([p for _, p in good]).float() / 255)


class _Squares(Dataset[tuple[int, Tensor | str]]):
    """(index, uint8 pixels), or (index, why not)."""

    def __init__(self, source: ImageSource, indices: Sequence[int], size: int) -> None:
        self.source, self.indices, self.size = source, indices, size
        self.to_tensor = v2.PILToTensor()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[int, Tensor | str]:
        index = self.indices[i]
        try:
            return index, self.to_tensor(square(self.source.image(index), self.size))
        except UnreadableImage as reason:
            return index, str(reason)
