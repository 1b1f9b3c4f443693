"""How well images of another kind are told from those that the backbone was meant for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from genview.evaluation.features import Features, extract
from genview.evaluation.knn import neighbours
from genview.evaluation.named import named
from genview.evaluation.options import COUNT, want, want_some
from genview.evaluation.subject import Subject
from genview.images import ImageSource, SingleImages
from genview.images.source import silent

VALUES = 2**25
"""Held in memory at a time (256 MB in float64)."""
Score = Literal["knn", "mahalanobis"]


@dataclass(frozen=True)
class Outliers:
    """AUROC of the test images against `images`, which are of no class of the training images.

    Scores: 'knn' is the distance to the `k`-th nearest training image between normalised features (Sun et al., ICML
    2022, arXiv 2204.06507; `k` is at most the number of training images). 'mahalanobis' is the least distance to the
    mean of a class under the covariance that all classes share (Lee et al., NeurIPS 2018, arXiv 1807.03888,
    section 2.1, on these features alone).

    Raises:
        UserError: there is no score, or `k` is below 1.
    """

    images: SingleImages
    kind: Literal["outliers"] = "outliers"
    scores: tuple[Score, ...] = ("knn",)
    k: int = 50

    protocol: ClassVar[str] = "outliers-1"

    def __post_init__(self) -> None:
        want_some(self.kind, self, "scores")
        want(self.kind, self, COUNT, "k")

    def look_ahead(self, subject: Subject) -> None:
        """Look for the images.

        Raises:
            UserError: there are none.
        """
        self.images.build(tell=subject.reading.tell or silent)

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('outliers/SCORE/auroc', chance that an outlier's score is above a test image's)."""
        train, test = subject.features
        reading = named(subject.reading, "outliers")
        source = AsOne(self.images.build(tell=reading.tell or silent))
        found = extract(subject.load().to(reading.device), source, reading)
        for score in self.scores:
            inside, outside = (
                knn_distance(train, part, self.k, reading.device) if score == "knn" else mahalanobis(train, part.x)
                for part in (test, found)
            )
            yield f"outliers/{score}/auroc", auroc(inside, outside)


@dataclass(frozen=True)
class AsOne:
    """A source whose images are all of one class, whatever they were: outliers need no labels."""

    source: ImageSource
    classes: tuple[str, ...] = ("other",)

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        """As in the source."""
        return self.source.key(i)

    def image(self, i: int) -> Image.Image:
        """As in the source."""
        return self.source.image(i)

    def label(self, i: int) -> int | None:  # noqa: ARG002 - the same for all
        """The one class."""
        return 0


def knn_distance(train: Features, asked: Features, k: int, device: str = "cpu") -> Tensor:
    """Distance of N features to the k-th nearest training image, all divided by their length; N values."""
    return (2 - 2 * neighbours(train, asked, k, device=device).similarity[:, -1]).clamp(min=0).sqrt()


def mahalanobis(train: Features, x: Tensor, chunk: int | None = None) -> Tensor:
    """Least squared distance of features N×D to a class mean under the shared covariance; N values.

    Directions in which the training features do not vary do not count. Rows are taken as many at a time as make
    256 MB, unless `chunk` says how many.
    """
    width, chunk = x.shape[1], chunk or max(1, VALUES // x.shape[1])
    labels, place = train.y.unique(return_inverse=True)
    means = torch.zeros(len(labels), width, dtype=torch.float64)
    for part, own in zip(train.x.split(chunk), place.split(chunk), strict=True):
        means.index_add_(0, own, part.double())
    means /= place.bincount()[:, None]
    shared = torch.zeros(width, width, dtype=torch.float64)
    for part, own in zip(train.x.split(chunk), place.split(chunk), strict=True):
        centred = part.double() - means[own]
        shared += centred.T @ centred / len(place)
    precision = torch.linalg.pinv(shared, hermitian=True)
    return torch.cat([_least(part.double(), means, precision) for part in x.split(chunk)])


def _least(x: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Least of (x − m)ᵀ P (x − m) over the means."""
    distances = [((x - mean) @ precision * (x - mean)).sum(dim=1) for mean in means]
    return torch.stack(distances).min(dim=0).values


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that a score of `outside` is above one of `inside`; equal ones count half (Mann & Whitney)."""
    ordered = inside.sort().values
    below = torch.searchsorted(ordered, outside)
    upto = torch.searchsorted(ordered, outside, right=True)
    return float((below + upto).double().mean()) / (2 * len(inside))
