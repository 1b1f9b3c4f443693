"""Random crops in random colours, on which the correction learns what training's views do to a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as vision

from genview.foreground import Looking
from genview.images import UnreadableImage
from genview.images.origin import Origin
from genview.quality.grids import picture_at
from genview.quality.pictures import DrawTable, Pictures
from genview.seeds import seed_of

BATCH = 64
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Wider than the recipes of views, so that none of them asks for what was never seen."""


def disguised(image: Image.Image, side: int, seed: int) -> tuple[Tensor, Tensor, bool]:
    """Return a view of an image, uint8 3×side×side, its box (see `Origin`), and whether it is flipped.

    It may be jittered, grey, blurred and solarised, as views are in self-supervised learning (BYOL, appendix B).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))
        flipped = bool(torch.rand(()) < 0.5)
        cut = vision.resized_crop(
            image, top, left, height, width, [side, side], InterpolationMode.BICUBIC, antialias=True
        )
        view = _DISGUISE(vision.pil_to_tensor(cut))
    box = torch.tensor(
        [left / image.width, top / image.height, (left + width) / image.width, (top + height) / image.height]
    )
    return (view.flip(2) if flipped else view), box, flipped


_DISGUISE = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
        v2.RandomSolarize(128, p=0.1),
    ]
)


def crops(
    looking: Looking, views: DrawTable | None, places: np.ndarray, side: int, seed: int
) -> Iterator[tuple[Tensor, Origin]]:
    """Yield batches of crops M×3×side×side in [0, 1], one of the picture at each place, and their origins.

    Origins have an image, a draw, a box and a flip for each of M. Pictures that cannot be read are left out.
    """
    for start in range(0, len(places), BATCH):
        found = []
        for number, place in enumerate(places[start : start + BATCH].tolist(), start):
            image, draw = picture_at(place)
            pictures = Pictures(looking.source, views, [image], side)
            which = next(i for i in range(len(pictures)) if pictures.draw(i) == draw)
            try:
                cut = disguised(pictures.whole(which), side, seed_of(seed, pictures.key(which), number, "correction"))
            except UnreadableImage as reason:
                looking.unreadable(pictures.key(which), str(reason))
                continue
            found.append((image, draw, *cut))
        if found:
            images, draws, cuts, boxes, flips = zip(*found, strict=True)
            origin = Origin(torch.tensor(images), torch.tensor(draws), torch.stack(boxes), torch.tensor(flips))
            yield torch.stack(cuts).float() / 255, origin
