"""Another image of the same class as the second view: what views would do that keep the class and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from genview.errors import UserError
from genview.images import ImageSource, opened
from genview.images.origin import FoundView
from genview.pairs.dataset import NOT_GENERATED
from genview.seeds import seed_of


@dataclass(frozen=True)
class SameClassViews:
    """Other images of the same class, new ones each time, in the place of generated views.

    It needs labels, so it is not self-supervised learning but something to compare with: no generator that keeps the
    class of an image could be more diverse. `pairs.views` is how often, as it is for generated views. `kept`, in
    [0, 1], is how often the class is kept: the other views show an image of any other class. `draws` is how many
    views an image has, always the same ones, as `generate.draws` of a generator.

    Raises:
        UserError: `kept` is no share, or `draws` is below 1.
    """

    kind: Literal["same_class"] = "same_class"
    kept: float = 1.0
    draws: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= 1:
            raise UserError(f"views.kept is {self.kept:g}; it is the share of views that keep the class, 0 to 1.")
        if self.draws is not None and self.draws < 1:
            raise UserError(
                f"views.draws is {self.draws}; an image needs at least 1, or null for new ones each time."
            )


class Classmates:
    """Finds other images of an image's class among those at `indices`, which ascend; a `FindView`.

    Raises:
        UserError: the images have no labels, or all those at `indices` are of one class, which is not to be kept.
    """

    def __init__(
        self, source: ImageSource, indices: Sequence[int] | np.ndarray, settings: SameClassViews = SameClassViews()
    ) -> None:
        if not source.classes:
            raise UserError("views.kind same_class needs labelled images: put them into class folders.")
        labels = np.fromiter((source.label(int(i)) for i in indices), np.int64, len(indices))
        if settings.kept < 1 and len(np.unique(labels)) == 1:
            raise UserError(f"views.kept is {settings.kept:g}, but all images are of one class: leave it at 1.")
        order = np.argsort(labels, kind="stable")
        self.source, self.settings = source, settings
        self._by_class = np.asarray(indices)[order]
        self._ends = np.searchsorted(labels[order], np.arange(len(source.classes) + 1))
        self._places = {source.key(int(i)): int(i) for i in indices}

    def find(self, key: str, number: int, count: int = 1) -> list[FoundView]:
        """Return `count` different ones as a random `number` picks them, or all where there are fewer."""
        place, draws = self._places.get(key), self.settings.draws
        if place is None:
            return []
        if draws is None:
            return self._views(enumerate(self._others(place, count, Random(number))))
        mates = list(enumerate(self._others(place, draws, Random(seed_of(0, key, 0, "same class")))))
        return self._views(Random(number).sample(mates, min(count, len(mates))))

    def _others(self, place: int, count: int, chance: Random) -> list[int]:
        """Draw different images of the class of the one at `place`, some of them replaced by one of another class."""
        label = self.source.label(place) or 0
        first, last = int(self._ends[label]), int(self._ends[label + 1])
        own = first + int(np.searchsorted(self._by_class[first:last], place))
        mates, strangers = last - first - 1, len(self._by_class) - (last - first)
        ranks = [first + n + (first + n >= own) for n in chance.sample(range(mates), min(count, mates))]
        for n in range(len(ranks) if self.settings.kept < 1 else 0):
            if chance.random() >= self.settings.kept:
                other = chance.randrange(strangers)
                ranks[n] = other if other < first else other + last - first
        return [int(self._by_class[rank]) for rank in ranks]

    def _views(self, mates: Iterable[tuple[int, int]]) -> list[FoundView]:
        return [FoundView(draw, NOT_GENERATED, opened(self.source, mate)) for draw, mate in mates]
