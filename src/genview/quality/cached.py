"""Cached quality: the frozen encoder has looked at every picture once, and crops are read off what it saw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genview.errors import UserError
from genview.images.origin import Origin
from genview.quality.correction import Correction
from genview.quality.grids import Grids, read_off
from genview.quality.similarity import Quality, full_size, pair_quality
from genview.quality.weighting import Weighting


class CachedWeigher:
    """Weigh pairs by where their views were cut from, and by a quick look at them; `cache` makes one.

    `grids` are maps of k components of whole pictures, the first of them along the direction; `grid` (h, w) is the
    encoder's for a view. Without a `correction` the views themselves are not looked at.
    """

    def __init__(
        self, grids: Grids, grid: tuple[int, int], correction: Correction | None, weighting: Weighting | None = None
    ) -> None:
        self.grids, self.grid, self.correction = grids, grid, correction
        self.weighting = weighting or Weighting()

    @torch.no_grad()
    def __call__(self, views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:
        """Quality of every pair of the views of full size, B×3×S×S in [0, 1] each.

        Raises:
            UserError: a picture is not in the cache.
        """
        shown = full_size(views)
        with torch.autocast(shown[0].device.type, enabled=False):
            maps = self.maps(torch.cat(shown), one_by_one(origin, len(shown)))
        tokens = maps.flatten(2).transpose(1, 2).chunk(len(shown))
        direction = torch.zeros(maps.shape[1], device=maps.device)
        direction[0] = 1.0
        return pair_quality(tokens, direction, self.weighting, progress)

    def maps(self, views: Tensor, origin: Origin) -> Tensor:
        """Components of the tokens of M views M×3×S×S, M×k×h×w; `origin` as `one_by_one` gives it."""
        read = self.read(origin, views.device)
        return read if self.correction is None else self.correction(read, views.float())

    def read(self, origin: Origin, device: torch.device) -> Tensor:
        """What was read off for M views, M×k×h×w; `origin` as `one_by_one` gives it.

        Raises:
            UserError: a picture is not in the cache.
        """
        whole, there = self.grids.read(origin.image, origin.draw, device)
        if not bool(there.all()):
            lost = int(torch.nonzero(~there)[0])
            image, draw = int(origin.image[lost]), int(origin.draw[lost])
            raise UserError(
                f"{self.grids.folder} has no map of draw {draw} of image {image}: it "
                "could not be read when the maps were made. Delete that folder to make them anew."
            )
        return read_off(whole, origin.box, origin.flipped, self.grid)


def one_by_one(origin: Origin, count: int) -> Origin:
    """Origins of the first `count` views, one view after another: M = V·B images, draws, boxes and flips."""
    return Origin(
        origin.image.repeat(count),
        origin.draw[:, :count].T.flatten(),
        origin.box[:, :count].transpose(0, 1).flatten(0, 1),
        origin.flipped[:, :count].T.flatten(),
    )
