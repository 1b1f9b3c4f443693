"""What the tests of the view-quality benchmark share: painted images, a judge by colour, and simple generators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import Painted
from genview.encoders import FrozenEncoder
from genview.encoders.frozen import Encoded
from genview.generators import Text

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from classifier import Classifier, Labelled, Recipe
from judge import Judge

TINY = Recipe(widths=(8, 8, 8), samples=1600, batch=32)
"""A classifier whose training is soon over."""


def silent(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


def painted(count: int, first: int = 0, size: int = 16) -> Labelled:
    source, rows = Painted(first + count, size=size), range(first, first + count)
    images = torch.stack([pil_to_tensor(source.image(i)) for i in rows])
    return Labelled([source.key(i) for i in rows], images, torch.tensor([source.label(i) for i in rows]))


def judged(sources: Labelled, bank: Tensor | None = None) -> Judge:
    """The judge by colour, with other painted images as the rest and as the training images."""
    size = sources.images.shape[-1]
    bank = painted(60, first=2000, size=size).images if bank is None else bank
    return Judge(Colour(), sources, painted(40, first=1000, size=size), bank, silent)


class Colour(Classifier):
    """Says which colour is strongest; its features are the mean colours, and its map the pixels."""

    def __init__(self) -> None:
        super().__init__((4, 4, 3), 3)
        self.head.weight.data.copy_(torch.eye(3))
        self.head.bias.data.zero_()

    def features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def maps(self, images: Tensor, depth: int = 3) -> Tensor:  # noqa: ARG002
        return images


class Pixels:
    """A frozen encoder whose embedding is the image, at its size."""

    name, size = "pixels", 16

    def encode(self, images: Tensor) -> Encoded:
        images = F.adaptive_avg_pool2d(images, self.size)
        return Encoded(images.flatten(2).mT, images.flatten(1), (16, 16))

    def to(self, device: torch.device | str) -> Self:  # noqa: ARG002
        return self


class Noisy:
    """A generator that returns the source, `scale` times as large, with noise in proportion to the level."""

    name, scale = "noisy", 2

    def __init__(self) -> None:
        self.encoder: FrozenEncoder = Pixels()
        self.size = 16 * self.scale
        self.asked: list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = []

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,  # noqa: ARG002
    ) -> Tensor:
        self.asked.append((tuple(seeds), tuple(level.tolist()), tuple(guidance.tolist())))
        noise = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds])
        views = self.changed(condition.view(-1, 3, 16, 16), level.view(-1, 1, 1, 1) / 400, noise)
        return F.interpolate((views.clamp(0, 1) * 255).round(), scale_factor=self.scale).byte()

    def changed(self, images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
        return images + strength * noise

    def exact(self) -> Self:
        return self

    def to(self, device: torch.device | str) -> Self:  # noqa: ARG002
        return self
