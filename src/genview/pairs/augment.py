"""One view's augmentation: every number is drawn first, then applied, to one view or to a batch on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop, as shares of the image's width and height."""

TRIES = 10
ASPECT = (3 / 4, 4 / 3)
SIGMA = (0.1, 2.0)
"""Standard deviations of the blur in pixels, whatever the size of the view (SimCLR, appendix A)."""
COARSE = (64 / 224, 128 / 224)
"""Sides to which StableRep reduces an image before it cuts a view from it, in sides of the view."""
UNCHANGED = (1.0, 1.0, 1.0, 0.0)
"""Factors of brightness, contrast and saturation, and shift of the hue, that leave an image as it is."""


class Look(NamedTuple):
    """Everything that is random in one view.

    `box`: the crop. `flipped`: left to right. `factors`: of brightness, contrast and saturation, and the shift of
    the hue in turns; `order`: in which of the four follow one another. `grey`. `sigma`: of the blur in pixels, 0
    for none. `solarised`. `coarse`: the shortest side to which the image is reduced before the view is cut from
    it, in sides of the view; 0 for none.
    """

    box: Box
    flipped: bool = False
    factors: tuple[float, float, float, float] = UNCHANGED
    order: tuple[int, ...] = (0, 1, 2, 3)
    grey: bool = False
    sigma: float = 0.0
    solarised: bool = False
    coarse: float = 0.0


class Looks(NamedTuple):
    """What is applied to B views after they are cut: `flipped`, `grey`, `sigma` and `solarised` B, the others B×4."""

    flipped: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    solarised: Tensor

    @staticmethod
    def of(looks: Sequence[Look]) -> Looks:
        """Gather the looks of B views."""
        return Looks(*(torch.tensor([getattr(look, name) for look in looks]) for name in Looks._fields))


@dataclass(frozen=True)
class ViewRecipe:
    """Probabilities and strengths of one view's augmentations, in the order in which they are applied.

    `coarse`, of a reduction of the whole image to a size in `COARSE`, comes before the crop.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0
    coarse: float = 0.0

    def draw(self, size: tuple[int, int], chance: Random) -> Look:
        """Draw a view of an image of this width and height; distributions are those of torchvision's transforms."""
        box = draw_box(size, self.scale, chance)
        factors, order = self._jitter(chance)
        return Look(
            box=box,
            flipped=chance.random() < self.flip,
            factors=factors,
            order=order,
            grey=chance.random() < self.grey,
            sigma=chance.uniform(*SIGMA) if chance.random() < self.blur else 0.0,
            solarised=chance.random() < self.solarise,
            coarse=chance.choice(COARSE) if chance.random() < self.coarse else 0.0,
        )

    def _jitter(self, chance: Random) -> tuple[tuple[float, float, float, float], tuple[int, ...]]:
        if chance.random() >= self.jitter_share:
            return UNCHANGED, (0, 1, 2, 3)
        brightness, contrast, saturation = (chance.uniform(max(0.0, 1 - s), 1 + s) for s in self.jitter[:3])
        hue = chance.uniform(-self.jitter[3], self.jitter[3])
        return (brightness, contrast, saturation, hue), tuple(chance.sample(range(4), 4))


def draw_box(size: tuple[int, int], scale: tuple[float, float], chance: Random) -> Box:
    """Draw a crop of whole pixels: its area uniform in `scale` of the image's, the logarithm of its aspect uniform.

    Like torchvision's, it gives up after ten crops that do not fit and takes the largest one in the middle whose
    aspect is allowed.
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * chance.uniform(*scale)
        aspect = math.exp(chance.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = chance.randint(0, width - w), chance.randint(0, height - h)
            break
    else:
        w, h = min(width, max(1, round(height * ASPECT[1]))), min(height, max(1, round(width / ASPECT[0])))
        left, top = (width - w) // 2, (height - h) // 2
    return left / width, top / height, (left + w) / width, (top + h) / height
