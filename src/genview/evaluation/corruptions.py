"""Corruptions of images in five severities, after Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from genview.images import ImageSource, square
from genview.seeds import seed_of

Corruption = Literal["gaussian_noise", "gaussian_blur", "contrast", "brightness", "pixelate", "jpeg"]
Strengths = Literal["imagenet_c", "cifar_c"]

STRENGTHS: dict[Strengths, dict[Corruption, tuple[float, ...]]] = {
    "imagenet_c": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "gaussian_blur": (1, 2, 3, 4, 6),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg": (25, 18, 15, 10, 7),
    },
    "cifar_c": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg": (80, 65, 58, 50, 40),
    },
}
"""By severity, from 1: the noise's and the blur's deviation (of [0, 1]; in pixels), the share of the contrast that is
left, what is added to the brightest channel, the share of the side that is left, and JPEG's quality."""


def corrupted(image: Image.Image, name: Corruption, strength: float, seed: int = 0) -> Image.Image:
    """Corrupt an image of mode RGB; only noise is random."""
    if name == "pixelate":
        width, height = (max(1, int(side * strength)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)
    if name == "jpeg":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(strength))
        return Image.open(file).convert("RGB")
    x = np.asarray(image, dtype=np.float64) / 255
    if name == "gaussian_noise":
        x = x + np.random.default_rng(seed).normal(0, strength, x.shape)
    elif name == "gaussian_blur":
        x = gaussian_filter(x, (strength, strength, 0), mode="nearest")
    elif name == "contrast":
        mean = x.mean(axis=(0, 1))
        x = (x - mean) * strength + mean
    else:
        x = brighter(x, strength)
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))


def brighter(x: np.ndarray, strength: float) -> np.ndarray:
    """Raise the value of HSV, up to 1; hue and saturation stay. Pixels H×W×3 in [0, 1]; black becomes grey."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + strength, 1)
    found: np.ndarray = np.where(value > 0, x * raised / np.maximum(value, 1e-12), raised)
    return found


@dataclass(frozen=True)
class Corrupted:
    """The images of a source, squared to `size` and then corrupted; noise depends on seed and key alone."""

    source: ImageSource
    size: int
    name: Corruption
    strength: float
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        """As in the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        """As in the source."""
        return self.source.key(i)

    def image(self, i: int) -> Image.Image:
        """Corrupt it."""
        whole = square(self.source.image(i), self.size)
        return corrupted(whole, self.name, self.strength, seed_of(self.seed, self.key(i), 0, self.name))

    def label(self, i: int) -> int | None:
        """As in the source."""
        return self.source.label(i)
