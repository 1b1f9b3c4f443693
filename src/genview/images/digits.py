"""The 1,797 handwritten digits inside scikit-learn: real images that need no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from genview.images.combine import limited
from genview.images.source import ImageSource, Tell, silent

SIDE = 32
TEST_EVERY = 4


@dataclass(frozen=True)
class DigitImages:
    """`part`: every fourth digit of each class is for testing."""

    kind: Literal["digits"] = "digits"
    part: Literal["all", "train", "test"] = "all"
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:  # noqa: ARG002 - nothing is looked for
        """Load the digits."""
        return limited(Digits(self.part), self.limit)


class Digits:
    """8×8 greys, enlarged to 32×32 (bicubic); keys number the whole set."""

    def __init__(self, part: Literal["all", "train", "test"] = "all") -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        self._images = (found.images * (255 / 16)).round().astype(np.uint8)
        self._labels = [int(label) for label in found.target]
        self.classes: tuple[str, ...] = tuple(str(digit) for digit in range(10))
        nth = [0] * 10
        self._rows: list[int] = []
        for row, label in enumerate(self._labels):
            nth[label] += 1
            own = "test" if nth[label] % TEST_EVERY == 0 else "train"
            if part in ("all", own):
                self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, i: int) -> str:
        """Number in the whole set."""
        return f"digits/{self._rows[i]:04d}"

    def image(self, i: int) -> Image.Image:
        """Enlarge."""
        small = Image.fromarray(self._images[self._rows[i]])
        return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")

    def label(self, i: int) -> int | None:
        """The digit."""
        return self._labels[self._rows[i]]
