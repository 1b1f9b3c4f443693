"""Labelled images as supervised training sees them: a random crop, now and then flipped."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genview.errors import UserError
from genview.images import ImageSource, UnreadableImage, opened
from genview.pairs import pixels
from genview.pairs.augment import ViewRecipe
from genview.seeds import seed_of

TRIES = 20


class Example(NamedTuple):
    """Pixels uint8 3×S×S, label, and row: which image of the source it is. Or a batch: B×3×S×S, B and B.

    `unreadable`: key and reason of images that were replaced by the next ones.
    """

    pixels: Tensor
    label: Tensor
    row: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()


class Augmented(Dataset[Example]):
    """Random crops by (epoch, index), the same for the same seed, epoch and key.

    A crop has between `smallest` and all of the image's area and an aspect between 3/4 and 4/3, is resized to `size`
    pixels and flipped with probability `flip`: the augmentation of linear probes and fine-tuning since Inception
    (Szegedy et al., CVPR 2015, section 6), colours untouched.
    """

    def __init__(self, source: ImageSource, size: int, smallest: float, flip: float, seed: int) -> None:
        self.source, self.size, self.seed = source, size, seed
        self.recipe = ViewRecipe(scale=(smallest, 1.0), flip=flip, jitter_share=0.0, grey=0.0, blur=0.0)

    def __getitem__(self, position: tuple[int, int]) -> Example:
        epoch, first = position
        bad: list[tuple[str, str]] = []
        for step in range(TRIES):
            row = (first + step) % len(self.source)
            try:
                view = self._crop(row, epoch)
            except UnreadableImage as reason:
                bad.append((self.source.key(row), str(reason)))
            else:
                return Example(view, torch.tensor(self.source.label(row)), torch.tensor(row), tuple(bad))
        raise UserError(
            f"{TRIES} images in a row could not be read, the first being '{bad[0][0]}' ({bad[0][1]}). "
            "Check that the folder is whole and that this user may read it."
        )

    def _crop(self, row: int, epoch: int) -> Tensor:
        image = opened(self.source, row)
        look = self.recipe.draw(image.size, Random(seed_of(self.seed, self.source.key(row), epoch, "crop")))
        whole = image.pixels(pixels.shrink(image.size, [(look, self.size)]))
        view, _ = pixels.cut(whole, look, self.size)
        return torch.from_numpy(pixels.applied(view, look))


def together(examples: Sequence[Example]) -> Example:
    """Make a batch of examples."""
    views, labels, rows, unreadable = zip(*examples, strict=True)
    return Example(
        torch.stack(views), torch.stack(labels), torch.stack(rows), tuple(r for own in unreadable for r in own)
    )
