"""Quality with hand-drawn foreground masks, where a data set has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genview.encoders import FrozenEncoder
from genview.errors import UserError
from genview.foreground import Looking, soft_mask
from genview.images.decode import decode
from genview.images.origin import Origin
from genview.images.source import ImageSource, UnreadableImage
from genview.quality.grids import ORIGINAL, Grids, Maps, make_parts, place_of, read_off
from genview.quality.similarity import Quality, full_size, pooled, quality_of
from genview.quality.weighting import Weighting
from genview.store import claim

SIDE = 64
"""Cells on a side of a kept mask."""


class MaskedWeigher:
    """Weigh pairs with a frozen encoder, taking masks for the maps M^f of the originals that have one."""

    def __init__(
        self, encoder: FrozenEncoder, direction: Tensor, masks: Grids, weighting: Weighting | None = None
    ) -> None:
        self.encoder, self.direction, self.masks = encoder, direction, masks
        self.weighting = weighting or Weighting()

    @property
    def missing(self) -> int:
        """How many images have no mask."""
        return self.masks.images - len(self.masks)

    @torch.no_grad()
    def __call__(self, views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:
        """Quality of every pair of the views of full size, B×3×S×S in [0, 1] each."""
        shown = full_size(views)
        seen = self.encoder.encode(torch.cat(shown))
        with torch.autocast(seen.tokens.device.type, enabled=False):
            scores = seen.tokens.float() @ self.direction.float()
            drawn, there = self._drawn(origin, len(shown), seen.grid, scores.device)
            maps = torch.where(there[:, None], drawn, soft_mask(scores)).chunk(len(shown))
            tokens = seen.tokens.float().chunk(len(shown))
            found = [pooled(view, mask) for view, mask in zip(tokens, maps, strict=True)]
        return quality_of(found, self.weighting, progress)

    def _drawn(
        self, origin: Origin, count: int, grid: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Masks of the first `count` views one after another, V·B×N, and V·B flags of those that have one."""
        draw = origin.draw[:, :count].T.flatten()
        whole, there = self.masks.read(origin.image.repeat(count), draw, device)
        box, flipped = origin.box[:, :count].transpose(0, 1).flatten(0, 1), origin.flipped[:, :count].T.flatten()
        return read_off(whole, box, flipped, grid).flatten(1).clamp(0, 1), there


def gather_masks(looking: Looking, masks: Path, folder: Path, *, identity: Mapping[str, object]) -> Grids:
    """Keep the masks of a source below `folder`, 64×64 cells each, continuing with the parts that are missing.

    A mask that cannot be read counts as missing and is told to `looking.unreadable`.

    Raises:
        UserError: `folder` holds other masks, or `masks` has none for any image.
    """
    claim(folder, {**identity, "masks": str(masks), "images_found": len(looking.source)})
    known = {path.relative_to(masks).with_suffix("").as_posix(): path for path in sorted(masks.rglob("*.png"))}

    def make(images: range) -> Maps:
        found = [(i, mask) for i in images if (mask := _mask(looking, known, i)) is not None]
        values = torch.stack([mask for _, mask in found]) if found else torch.zeros(0, 1, SIDE, SIDE)
        return Maps(np.array([place_of(i, ORIGINAL) for i, _ in found], dtype=np.int64), values)

    make_parts(folder, len(looking.source), make, "masks", looking.tell)
    grids = Grids(folder, len(looking.source), (1, SIDE, SIDE))
    if not len(grids):
        raise UserError(
            f"{masks} holds no mask of any of the {len(looking.source)} images, the first of which would be "
            f"{_stem(looking.source, 0)}.png. Point quality.masks at the folder that lies there as the images' does."
        )
    missing = len(looking.source) - len(grids)
    looking.tell("masks", len(grids), len(looking.source), f"{missing} images without a mask")
    return grids


def _stem(source: ImageSource, i: int) -> str:
    return PurePosixPath(source.key(i)).with_suffix("").as_posix()


def _mask(looking: Looking, known: Mapping[str, Path], i: int) -> Tensor | None:
    """The share of each cell that is foreground, 1×SIDE×SIDE; None where there is no mask that can be read."""
    path = known.get(_stem(looking.source, i))
    if path is None:
        return None
    try:
        things = np.asarray(decode(path.read_bytes())).any(axis=2)
    except (UnreadableImage, OSError) as reason:
        looking.unreadable(looking.source.key(i), f"its mask cannot be used: {reason}")
        return None
    small = Image.fromarray(things.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small, dtype=np.float32))[None] / 255
