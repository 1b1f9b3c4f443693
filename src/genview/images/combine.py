"""Sources made of sources: several together, or a part of one."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from genview.errors import UserError
from genview.images.opened import Opened, opened
from genview.images.source import ImageSource
from genview.seeds import seed_of


class Together:
    """Several sources one after another; keys get the part's name in front, labels are dropped.

    Raises:
        UserError: there is no part, or a name has a '/', which could make two keys equal.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, parts: Mapping[str, ImageSource]) -> None:
        if not parts or any("/" in name for name in parts):
            raise UserError(f"images.parts needs at least one part, and no '/' in a name; it has {list(parts)}.")
        self._names, self._parts = list(parts), list(parts.values())
        self._starts = [sum(len(p) for p in self._parts[:n]) for n in range(len(self._parts))]

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def key(self, i: int) -> str:
        """Name of the part, then its key."""
        n, own = self._place(i)
        return f"{self._names[n]}/{self._parts[n].key(own)}"

    def image(self, i: int) -> Image.Image:
        """From the part."""
        n, own = self._place(i)
        return self._parts[n].image(own)

    def opened(self, i: int) -> Opened:
        """From the part."""
        n, own = self._place(i)
        return opened(self._parts[n], own)

    def label(self, i: int) -> int | None:  # noqa: ARG002 - classes of different sets do not compare
        """None."""
        return None

    def _place(self, i: int) -> tuple[int, int]:
        n = bisect.bisect_right(self._starts, i) - 1
        return n, i - self._starts[n]


class Subset:
    """Chosen images of a source, in the given order."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, i: int) -> str:
        """As in the source."""
        return self.source.key(int(self.indices[i]))

    def image(self, i: int) -> Image.Image:
        """As in the source."""
        return self.source.image(int(self.indices[i]))

    def opened(self, i: int) -> Opened:
        """As in the source."""
        return opened(self.source, int(self.indices[i]))

    def label(self, i: int) -> int | None:
        """As in the source."""
        return self.source.label(int(self.indices[i]))


class Labelled(Subset):
    """All images of a source, with labels that number other classes, by name; see `labelled_as`."""

    def __init__(self, source: ImageSource, classes: tuple[str, ...]) -> None:
        super().__init__(source, np.arange(len(source)))
        numbers = {name: number for number, name in enumerate(classes)}
        self.classes, self._numbers = classes, [numbers[name] for name in source.classes]

    def label(self, i: int) -> int | None:
        """The number of the class among `classes`."""
        label = super().label(i)
        return None if label is None else self._numbers[label]


def labelled_as(source: ImageSource, classes: Sequence[str]) -> ImageSource:
    """Return the images with labels that number `classes`, by the names of their own, some of which may be missing.

    Raises:
        UserError: the source has a class that is not among them.
    """
    if tuple(source.classes) == tuple(classes):
        return source
    if unknown := sorted(set(source.classes) - set(classes)):
        raise UserError(
            f"Images to be scored have classes that those to learn on lack: {', '.join(unknown[:5])}"
            f"{', …' if len(unknown) > 5 else ''}. The latter have {', '.join(list(classes)[:5])}"
            f"{', …' if len(classes) > 5 else ''}. Name classes alike, or leave such images out."
        )
    return Labelled(source, tuple(classes))


def limited(source: ImageSource, count: int | None) -> ImageSource:
    """Return a random part of `count` images, always the same one, in the order of the source; all where None.

    Raises:
        UserError: `count` is not positive.
    """
    if count is None or count >= len(source):
        return source
    if count < 1:
        raise UserError(f"images.limit is {count}; it should be at least 1.")
    chance = torch.Generator().manual_seed(seed_of(0, "", 0, "limit"))
    return Subset(source, torch.randperm(len(source), generator=chance)[:count].sort().values.numpy())
