"""The judge of `view_quality.py`: compares views with their sources, and with real images, by a classifier."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from classifier import Classifier, Labelled, Tell
from columns import Row
from copies import as_jpeg, near
from frechet import frechet
from genview.pairs import ViewRecipe, pixels

HAND_MADE = ViewRecipe(blur=0.0)
"""The augmentation of MoCo v2, without its blur, as is usual at 32 pixels."""


class Seen(NamedTuple):
    """What the classifier makes of N images: classes N, and the features N×D before its last layer."""

    classes: Tensor
    features: Tensor


class Views(NamedTuple):
    """One uint8 view of each of the first N sources, N×3×S×S, and which of them were kept, N."""

    images: Tensor
    kept: Tensor

    @staticmethod
    def all(images: Tensor) -> Views:
        """Return views of which every one was kept."""
        return Views(images, torch.ones(len(images), dtype=torch.bool))


@torch.no_grad()
def look(net: Classifier, images: Tensor) -> Seen:
    """Classify uint8 images N×3×S×S."""
    features = torch.cat([net.features(part / 255) for part in images.split(250)])
    return Seen(net.head(features).argmax(dim=1), features)


class Judge:
    """Compares views with their sources, which are real images that the classifier has not been trained on.

    Args:
        net: the classifier.
        sources: of the views.
        rest: other such images.
        bank: those that it, and presumably the generator, was trained on.
        tell: is told how far the comparison with `bank` is, which takes the time.
    """

    def __init__(self, net: Classifier, sources: Labelled, rest: Labelled, bank: Tensor, tell: Tell) -> None:
        self.net, self.sources, self.rest, self.bank, self.tell = net, sources, rest, bank, tell
        self.few = sources.first(max(1, len(sources.keys) // 4))
        self.real, self._others = look(net, sources.images), look(net, rest.images)
        right = [seen.classes == known.labels for seen, known in ((self.real, sources), (self._others, rest))]
        self.right = float(torch.cat(right).float().mean())
        self._near = near(sources.images, bank, "nearest training images of the sources", tell).distance
        self._unseen = rmse(as_jpeg(sources.images), sources.images)

    def row(self, name: str, views: Views, again: Views | None = None, rate: float | None = None) -> Row:
        """Measure one view of each source; `again` holds second draws for the first few of them.

        `rate` counts views a second. All is NaN where none was kept.
        """
        kept = views.kept
        images, sources = views.images[kept], self.sources.images[kept]
        seen, labels = look(self.net, images), self.sources.labels[kept]
        real = Seen(self.real.classes[kept], self.real.features[kept])
        right, possible = ((classes == labels).float().mean() for classes in (seen.classes, real.classes))
        trained, away = (
            near(images, self.bank, f"nearest training images of {name}", self.tell),
            rmse(images, sources),
        )
        return Row(
            name,
            accuracy=float(right),
            relative=float(right / possible.clamp(min=1e-9)),
            agreement=float((seen.classes == real.classes).float().mean()),
            rmse=float(away.mean()),
            feature_distance=float((1 - F.cosine_similarity(seen.features, real.features)).mean()),
            frechet=frechet(seen.features, self._others.features),
            to_training=float((trained.distance / self._near[kept].clamp(min=1e-9)).median()),
            training_copies=float(trained.copies.float().mean()),
            source_copies=float((away < self._unseen[kept]).float().mean()),
            between_draws=None if again is None else apart(views, again),
            images_per_second=rate,
            kept=float(kept.float().mean()),
        )


def apart(views: Views, again: Views) -> float:
    """Return how far two draws lie apart on average, by `rmse`, where both were kept."""
    both = views.kept[: len(again.kept)] & again.kept
    return float(rmse(views.images[: len(both)][both], again.images[both]).mean())


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference of uint8 images N×3×S×S, in units of their range: N values in [0, 1]."""
    return ((a.float() - b.float()) / 255).square().flatten(1).mean(dim=1).sqrt()


def nearest(sources: Tensor, bank: Tensor, tell: Tell) -> Tensor:
    """For each uint8 source the image of `bank` that is nearest in pixels."""
    flat, found = bank.flatten(1) / 255, []
    for rows in torch.arange(len(sources)).split(100):
        found.append(torch.cdist(sources[rows].flatten(1) / 255, flat).argmin(dim=1))
        tell("looking for the nearest training images", int(rows[-1]) + 1, len(sources))
    return bank[torch.cat(found)]


def hand_made(sources: Tensor, seed: int) -> Tensor:
    """One hand-made augmentation of each uint8 source."""
    chance, views = Random(seed), []
    for image in sources.permute(0, 2, 3, 1).numpy():
        look = HAND_MADE.draw(image.shape[1::-1], chance)
        views.append(torch.from_numpy(pixels.applied(pixels.cut(image, look, image.shape[0])[0], look)))
    return torch.stack(views)


def references(judge: Judge) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure what the views are to be compared with; return rows and images by name."""
    real = judge.sources.images
    shown = {"source": real, "hand-made": hand_made(real, 0), "nearest": nearest(real, judge.bank, judge.tell)}
    again = {"hand-made": hand_made(judge.few.images, 1)}
    return [
        judge.row(name, Views.all(images), Views.all(again[name]) if name in again else None)
        for name, images in shown.items()
    ], shown
