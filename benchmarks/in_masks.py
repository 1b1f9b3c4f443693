"""What a level keeps and what it varies: views of photographs beside their sources, inside and outside their masks.

The photographs are COCO's, on which no model of the package was trained. Features are those of the judge's
classifier after its second block: a map that still has places, and in which noise that is the same everywhere costs
foreground and background the same. They are centred, so that 1 is the same and about 0 is unrelated. Each place sees
some of its surroundings, so even a background that is another altogether leaves the foreground less than 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from classifier import Classifier, Labelled, Tell
from foreground_masks import masks_in, read

DEPTH = 2
"""Blocks of the classifier before the map: 7×7 places at 32 px."""
LEAST = 0.05
"""Share of the image that thing and rest both must have."""
BATCH = 25


class Kept(NamedTuple):
    """Means over the photographs: similarity of features in [-1, 1], and RMSE of pixels in [0, 1].

    `difference` is inside less outside, photograph by photograph, and `difference_error` its standard error.
    """

    inside: float
    outside: float
    difference: float
    difference_error: float
    rmse_inside: float
    rmse_outside: float


class Photographs:
    """Photographs, uint8 M×3×S×S, with their masks M×1×S×S in [0, 1]."""

    def __init__(self, net: Classifier, images: Labelled, things: Tensor) -> None:
        self.images, self._net, self._things = images, net, things
        found = self._maps(images.images)
        self._middle = found.mean(dim=(0, 2, 3), keepdim=True)
        self._real, self._cells = (
            found - self._middle,
            F.adaptive_avg_pool2d(things, (found.shape[2], found.shape[3])),
        )

    def kept(self, views: Tensor) -> Kept:
        """Compare one uint8 view of each with its source, place by place."""
        alike = F.cosine_similarity(self._maps(views) - self._middle, self._real, dim=1)
        squares = ((views.float() - self.images.images.float()) / 255).square().mean(dim=1)
        inside, outside = _sides(alike, self._cells)
        wrong = [found.sqrt().mean() for found in _sides(squares, self._things)]
        difference = inside - outside
        error = difference.std() / len(difference) ** 0.5
        return Kept(*map(float, (inside.mean(), outside.mean(), difference.mean(), error, *wrong)))

    def limits(self) -> dict[str, Kept]:
        """Compare each with another one (nothing is kept), and with itself before the background of that one."""
        images, others = self.images.images, self.images.images.roll(1, dims=0)
        repainted = (images * self._things + others * (1 - self._things)).round().byte()
        return {"others": self.kept(others), "repainted": self.kept(repainted)}

    @torch.no_grad()
    def _maps(self, images: Tensor) -> Tensor:
        return torch.cat([self._net.maps(part / 255, DEPTH) for part in images.split(BATCH)])


def _sides(values: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of values M×h×w over the thing, M×1×h×w, and over the rest: M each."""
    weights = (things[:, 0], 1 - things[:, 0])
    inside, outside = ((values * w).sum(dim=(1, 2)) / w.sum(dim=(1, 2)) for w in weights)
    return inside, outside


def photographs(net: Classifier, folder: Path, size: int, count: int | None, tell: Tell) -> Photographs | None:
    """Read the first `count` photographs that have thing and rest; None where these are not two."""
    masks, images, things = masks_in(folder)[:count], [], []
    for start in range(0, len(masks), BATCH):
        photos, found = read(masks[start : start + BATCH], size)
        images.append((photos * 255).round().byte())
        things.append(found)
        tell("reading photographs", min(start + BATCH, len(masks)), len(masks))
    mask = torch.cat([torch.zeros(0, 1, size, size), *things])
    share = mask.mean(dim=(1, 2, 3))
    rows = ((share > LEAST) & (share < 1 - LEAST)).nonzero().flatten()
    if len(rows) < 2:
        return None
    keys = [f"{masks[i].parent.name}/{masks[i].stem}" for i in rows.tolist()]
    return Photographs(net, Labelled(keys, torch.cat(images)[rows], torch.zeros_like(rows)), mask[rows])
