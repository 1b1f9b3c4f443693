"""Read generated views back by key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from genview.errors import UserError
from genview.generators.merge import INDEX, SHARDS, SUMMARY, TAR, digests
from genview.images.decode import ImageFile
from genview.images.opened import opened
from genview.images.origin import FoundView
from genview.images.source import ImageSource
from genview.store import read_at, read_mapped


class ViewImages:
    """The images of the views of a merged folder by row: an `ImageSource` without labels.

    Pickled, it is its folder: a worker process maps the index anew.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        columns = read_mapped(folder / INDEX)
        self._shard, self._offset, self._length = (columns[name].to_numpy() for name in ("shard", "offset", "length"))
        self._shards = _names(folder / SHARDS)

    def __len__(self) -> int:
        return len(self._shard)

    def __reduce__(self) -> tuple[type[ViewImages], tuple[Path]]:
        return ViewImages, (self.folder,)

    def key(self, row: int) -> str:
        """Name of the shard, and place in it."""
        return f"{self._shards[self._shard[row]]}/{self._offset[row]}"

    def label(self, row: int) -> None:
        """None: what a view shows is not known."""

    def image(self, row: int) -> Image.Image:
        """Decode a view, RGB; raises what `opened` does, and where it is damaged further on."""
        return self.opened(row).image()

    def opened(self, row: int) -> ImageFile:
        """Read a view and its header.

        Raises:
            UserError: a shard is gone or cut short.
            UnreadableImage: the view is damaged.
        """
        shard, length = self.folder / self._shards[self._shard[row]], int(self._length[row])
        try:
            data = read_at(shard, int(self._offset[row]), length)
        except FileNotFoundError:
            data = b""
        if len(data) < length:
            raise UserError(f"{shard} is gone or cut short: run `genview generate`, which makes it anew.")
        return ImageFile(data)


class ViewTable:
    """The generated views of a merged folder, found by key; nothing is read before it is asked for.

    `levels`, `scores`, `diversity` and `draws` have one value per view, in the order of rows; `planned`, `made`,
    `dropped` and `failed` count views; `images`: the views themselves, by row, where they lie or held decoded.
    Pickled, it is its folder and `images`: a worker process maps the index anew.

    Raises:
        UserError: the stage has not finished, or its index is damaged.
    """

    def __init__(self, folder: Path, images: ImageSource | None = None) -> None:
        self.folder = folder
        if not (folder / SUMMARY).exists():
            what = "is not finished" if any(folder.glob("part-*")) else "holds no generated views"
            raise UserError(f"{folder} {what}: run `genview generate` first.")
        columns = {name: column.to_numpy() for name, column in read_mapped(folder / INDEX).items()}
        self._high, self._low = columns["high"], columns["low"]
        self.levels, self.draws = columns["level"], columns["draw"]
        self.scores, self.diversity = columns["score"], columns["diversity"]
        self.images = ViewImages(folder) if images is None else images
        summary = json.loads((folder / SUMMARY).read_text())
        self.planned, self.made, self.dropped, self.failed = (
            int(summary[name]) for name in ("planned", "made", "dropped", "failed")
        )

    def __len__(self) -> int:
        return len(self._high)

    def __reduce__(self) -> tuple[type[ViewTable], tuple[Path, ImageSource]]:
        return ViewTable, (self.folder, self.images)

    def rows(self, key: str) -> range:
        """Return the rows of the made views of `key`, by draw."""
        high, low = (half[0] for half in digests([key]))
        first, last = np.searchsorted(self._high, high, "left"), np.searchsorted(self._high, high, "right")
        start, stop = (np.searchsorted(self._low[first:last], low, side) for side in ("left", "right"))
        return range(int(first + start), int(first + stop))

    def find(self, key: str, number: int, count: int = 1) -> list[FoundView]:
        """Return `count` different views of `key`, or all where there are fewer, as a random `number` picks them.

        Raises:
            UserError: a shard is gone or cut short.
            UnreadableImage: a view is damaged.
        """
        rows = self.rows(key)
        if not rows:
            return []
        first = rows[number % len(rows)]
        others = Random(number).sample([row for row in rows if row != first], min(count, len(rows)) - 1)
        return [
            FoundView(int(self.draws[row]), int(self.levels[row]), opened(self.images, row))
            for row in (first, *others)
        ]

    def view(self, row: int) -> tuple[Image.Image, int]:
        """Return the view of a row, RGB, and its level; raises what `find` does."""
        return self.images.image(row), int(self.levels[row])

    def missing(self, keys: Sequence[str]) -> int:
        """Count the different keys that have no view."""
        high, low = digests(set(keys))
        first, last = np.searchsorted(self._high, high, "left"), np.searchsorted(self._high, high, "right")
        lows = self._low[np.minimum(first, len(self) - 1)] if len(self) else np.zeros_like(low)
        there = (last > first) & (lows == low)
        # Where two keys share the upper half, the lower half of the second is not the first to be found.
        for i in np.flatnonzero((last > first) & ~there):
            there[i] = low[i] in self._low[first[i] : last[i]]
        return int((~there).sum())


def _names(path: Path) -> list[str]:
    """Read the names of the shards; only such as lie in the folder itself."""
    try:
        names = [str(name) for name, _ in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run `genview generate` again.") from error
    if strange := [name for name in names if not TAR.fullmatch(name)]:
        raise UserError(f"{path} names '{strange[0]}', which is no shard. Delete it and run `genview generate`.")
    return names
