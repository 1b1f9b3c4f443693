"""Another image of the same class as the second view: the far end of diversity for views that keep the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

import numpy as np

from genview.errors import UserError
from genview.images import ImageSource, opened
from genview.images.origin import FoundView
from genview.pairs.dataset import NOT_GENERATED


@dataclass(frozen=True)
class SameClassViews:
    """Other images of the same class, new ones each time, in the place of generated views.

    It needs labels, so it is not self-supervised learning but something to compare with: no generator that keeps the
    class of an image could be more diverse. `pairs.views` is how often, as it is for generated views.
    """

    kind: Literal["same_class"] = "same_class"


class Classmates:
    """Finds other images of an image's class among those at `indices`, which ascend; a `FindView`.

    Raises:
        UserError: the images have no labels.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        if not source.classes:
            raise UserError("views.kind same_class needs labelled images: put them into class folders.")
        labels = np.fromiter((source.label(int(i)) for i in indices), np.int64, len(indices))
        order = np.argsort(labels, kind="stable")
        ends = np.searchsorted(labels[order], np.arange(len(source.classes) + 1))
        members = np.asarray(indices)[order]
        self.source = source
        self._classes = [members[first:last] for first, last in pairwise(ends)]
        self._places = {source.key(int(i)): int(i) for i in indices}

    def find(self, key: str, number: int, count: int = 1) -> list[FoundView]:
        """Return `count` different ones as a random `number` picks them, or all where there are fewer."""
        place = self._places.get(key)
        if place is None:
            return []
        members = self._classes[self.source.label(place) or 0]
        own, others = int(np.searchsorted(members, place)), len(members) - 1
        chosen = Random(number).sample(range(others), min(count, others))
        mates = (int(members[n + (n >= own)]) for n in chosen)
        return [FoundView(draw, NOT_GENERATED, opened(self.source, mate)) for draw, mate in enumerate(mates)]
