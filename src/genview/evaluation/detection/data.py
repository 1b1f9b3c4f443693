"""Annotated images as a detector takes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from genview.errors import UserError
from genview.evaluation.detection.coco import Annotated, Row, pycocotools
from genview.images import ImageFile, UnreadableImage
from genview.images.folder import existing
from genview.images.source import bytes_of
from genview.seeds import seed_of

Target = dict[str, Tensor]
"""`boxes` N×4 float32, left, top, right and bottom in pixels; `labels` N int64 from 1; `masks` N×H×W uint8."""


class Example(NamedTuple):
    """An image uint8 3×H×W and what is to be found in it; where it cannot be used, `reason` says why."""

    key: str
    id: int
    image: Tensor
    target: Target
    reason: str = ""


class Objects(Dataset[Example]):
    """Annotated images below a folder; item (epoch, i) is image `i`, mirrored in every other epoch at random.

    Crowds are left out of the target, and so are boxes that have no area inside their image. Images are given at
    the size of their file: the detector resizes them.

    Args:
        annotated: what is to be seen on them.
        folder: where they lie.
        seed: of the mirroring; None: nothing is mirrored.
        masks: whether targets have masks.
        empty: whether images without a box to learn are kept.

    Raises:
        UserError: the folder or the first image is missing, or no image is left.
    """

    def __init__(
        self, annotated: Annotated, folder: Path, *, seed: int | None = None, masks: bool = False, empty: bool = True
    ) -> None:
        self.folder, self.seed, self.masks, self.labels = existing(folder), seed, masks, annotated.labels
        self.rows = {
            image["id"]: [row for row in annotated.annotations[image["id"]] if _learnable(row, image)]
            for image in annotated.images
        }
        self.images = [image for image in annotated.images if empty or self.rows[image["id"]]]
        if not self.images:
            raise UserError(f"No image of {annotated.file} has a box with an area: there is nothing to learn.")
        if not (folder / self.images[0]["file_name"]).is_file():
            raise UserError(
                f"There is no {self.images[0]['file_name']} in {folder}, where {annotated.file} has its first image. "
                "Name the folder that its file names are relative to."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> Example:
        epoch, i = position
        image, rows = self.images[i], self.rows[self.images[i]["id"]]
        key, size = image["file_name"], (image["width"], image["height"])
        try:
            pixels = ImageFile(bytes_of(self.folder / key)).image()
        except UnreadableImage as reason:
            return self._unusable(image, str(reason))
        if pixels.size != size:
            has, said = ("×".join(map(str, sides)) for sides in (pixels.size, size))
            return self._unusable(image, f"it has {has} pixels, and its annotations are for {said}")
        target = self._target(rows, *size)
        shown = pil_to_tensor(pixels)
        if self.seed is not None and seed_of(self.seed, key, epoch, "mirror") % 2:
            shown, target = mirrored(shown, target)
        return Example(key, image["id"], shown, target)

    def _unusable(self, image: Row, reason: str) -> Example:
        return Example(image["file_name"], image["id"], torch.empty(0), {}, reason)

    def _target(self, rows: list[Row], width: int, height: int) -> Target:
        boxes = torch.tensor([_corners(row, width, height) for row in rows], dtype=torch.float32).view(-1, 4)
        target = {"boxes": boxes, "labels": torch.tensor([self.labels[row["category_id"]] for row in rows]).long()}
        if self.masks:
            target["masks"] = torch.from_numpy(drawn([row["segmentation"] for row in rows], width, height))
        return target


def _corners(row: Row, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom inside the image."""
    left, top, wide, high = row["bbox"]
    return max(0.0, left), max(0.0, top), min(float(width), left + wide), min(float(height), top + high)


def _learnable(row: Row, image: Row) -> bool:
    left, top, right, bottom = _corners(row, image["width"], image["height"])
    return not row["iscrowd"] and right > left and bottom > top


def mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Mirror an image and its target left to right."""
    left, top, right, bottom = target["boxes"].unbind(dim=1)
    width = image.shape[-1]
    other = {**target, "boxes": torch.stack([width - right, top, width - left, bottom], dim=1)}
    if "masks" in target:
        other["masks"] = target["masks"].flip(-1)
    return image.flip(-1), other


def drawn(outlines: list[object], width: int, height: int) -> np.ndarray:
    """Polygons or run lengths as masks uint8 N×H×W."""
    mask = pycocotools().mask
    pictures = np.zeros((len(outlines), height, width), np.uint8)
    for n, outline in enumerate(outlines):
        rle = outline
        if isinstance(outline, list):
            rle = mask.merge(mask.frPyObjects(outline, height, width))
        elif isinstance(outline, dict) and isinstance(outline["counts"], list):
            rle = mask.frPyObjects(outline, height, width)
        with warnings.catch_warnings():  # it asks NumPy in the manner of before 2.0
            warnings.simplefilter("ignore", DeprecationWarning)
            pictures[n] = mask.decode(rle)
    return pictures
