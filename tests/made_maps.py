"""An encoder of colours, views of painted images that it sees, and the maps of both that a cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import Painted
from genview.encoders import Encoded
from genview.foreground import AnalyseSettings, Looking
from genview.images.origin import Origin
from genview.images.source import silent
from genview.quality import CachedQuality, CachedWeigher, Caching, cache

DIRECTION = F.normalize(torch.tensor([1.0, -0.5, 0.2]), dim=0)


class Colours:
    """Tokens are the mean colours of 4×4 pixels: what it sees of a crop lies in what it sees of the whole."""

    name, size = "colours", 16

    def __init__(self) -> None:
        self.looks = 0

    def encode(self, images: Tensor) -> Encoded:
        self.looks += len(images)
        x = images if images.shape[-1] == self.size else F.interpolate(images, (self.size,) * 2, mode="area")
        means = F.avg_pool2d(x, 4)
        return Encoded(means.flatten(2).mT, means.mean(dim=(2, 3)), (means.shape[2], means.shape[3]))

    def to(self, device: torch.device | str) -> Colours:  # noqa: ARG002
        return self


class Draws:
    """Generated views of `Painted`: draws 0 and 2 of every image, other pictures of the same kind."""

    draws = np.array([0, 2] * 12)

    def __len__(self) -> int:
        return 24

    def rows(self, key: str) -> range:
        return range(2 * int(key[-8:-4]), 2 * int(key[-8:-4]) + 2)

    def view(self, row: int) -> tuple[Image.Image, int]:
        return Painted(200, size=40).image(100 + row), 0


def looking(source: Any = None, encoder: Any = None, **more: Any) -> Looking:
    settings = AnalyseSettings(batch=5)
    unreadable = more.get("unreadable", lambda *_: None)
    return Looking(source or Painted(12), encoder or Colours(), settings, "cpu", silent, unreadable)


def making(caching: Looking, **settings: Any) -> Caching:
    chosen = CachedQuality(**{"components": 3, "correction": 0, **settings})
    return Caching(caching, Draws(), DIRECTION, chosen, side=16)


def made(folder: Path, **settings: Any) -> CachedWeigher:
    return cache(making(looking(), **settings), folder, seed=0, identity={})


def shown(source: Painted, images: list[int], chance: np.random.Generator) -> tuple[list[Tensor], Origin]:
    """Two views of each image, of the original and of a draw, cut by known boxes."""
    views: list[list[Tensor]] = [[], []]
    draws, boxes, flips = [], [], []
    for image in images:
        row = []
        for side, draw in enumerate((-1, 2)):
            picture = source.image(image) if draw < 0 else Draws().view(2 * image + 1)[0]
            left, top = chance.uniform(0, 0.4, 2)
            box, flip = [left, top, left + 0.55, top + 0.5], bool(chance.integers(2))
            scaled = [share * picture.size[0] for share in box]
            cut = picture.resize((16, 16), Image.Resampling.BICUBIC, box=tuple(scaled))
            pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
            views[side].append(pixels.flip(2) if flip else pixels)
            row.append((draw, box, flip))
        draws.append([d for d, _, _ in row])
        boxes.append([b for _, b, _ in row])
        flips.append([f for _, _, f in row])
    origin = Origin(torch.tensor(images), torch.tensor(draws), torch.tensor(boxes), torch.tensor(flips))
    return [torch.stack(side) for side in views], origin
