"""Quick scores of a backbone in training, on images that it is not trained on: a curve, and what to choose by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from genview.encoders.backbone import Backbone
from genview.evaluation.features import Reading, extract
from genview.evaluation.knn import knn_accuracy
from genview.evaluation.linear import Linear
from genview.images import ImageSource, Subset

IMAGES = 2000
K = 20
LINEAR = Linear(l2=(1e-3,), iterations=50, rates=())
"""Quick rather than best: the curve of a training, not its result."""


@dataclass(frozen=True)
class Online:
    """Scores of a backbone on at most 1,000 images of `held`, by what it knows of at most 2,000 of `bank`.

    Both are labelled and have no image in common. Where there are more, they are taken evenly spaced.
    """

    protocol: ClassVar[str] = "online-1"

    bank: ImageSource
    held: ImageSource
    reading: Reading
    seed: int

    def __call__(self, backbone: Backbone) -> Iterator[tuple[str, float]]:
        """Yield 'knn/top1@k=20' (temperature 0.07), then the measures of a short linear probe, in [0, 1].

        Raises:
            UserError: images have no labels or cannot be read.
        """
        known = extract(backbone, _few(self.bank, IMAGES), self.reading)
        asked = extract(backbone, _few(self.held, IMAGES // 2), self.reading)
        yield f"knn/top1@k={K}", knn_accuracy(known, asked, k=K, temperature=0.07)
        yield from LINEAR.on(known, asked, self.seed)


def _few(source: ImageSource, count: int) -> ImageSource:
    """At most `count` images, evenly spaced."""
    return Subset(source, range(0, len(source), -(-len(source) // count)))
