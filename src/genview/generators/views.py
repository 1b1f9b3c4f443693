"""Read generated views back by key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from genview.errors import UserError
from genview.images.decode import decode
from genview.store import read_at, read_table

COLUMNS = ("key", "draw", "level", "seed", "guidance", "shard", "offset", "length", "score")


class ViewTable:
    """Every generated view of a folder: its key, draw, level and place; images are read when asked for.

    Raises:
        UserError: the folder holds no finished part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise UserError(f"{folder} holds no generated views: run `genview generate` first.")
        self.rows = read_table(parts)
        order = np.argsort(self.rows["key"].astype(str), kind="stable")
        self._keys = self.rows["key"].astype(str)[order]
        self._order = order

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str, number: int) -> tuple[Image.Image, int] | None:
        """Return the view of `key` that `number` picks among its draws, and its level; None where there is none."""
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        if first == last:
            return None
        return self.view(int(self._order[first + number % (last - first)]))

    def view(self, row: int) -> tuple[Image.Image, int]:
        """Return the view of a row, RGB, and its level."""
        shard = self.folder / str(self.rows["shard"][row])
        data = read_at(shard, int(self.rows["offset"][row]), int(self.rows["length"][row]))
        return decode(data), int(self.rows["level"][row])

    def missing(self, keys: list[str]) -> int:
        """Count the keys that have no view."""
        return len(set(keys) - set(self._keys.tolist()))
