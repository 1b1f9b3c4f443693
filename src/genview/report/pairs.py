"""Training pairs with all that is known of each, gathered from what training, analysis and generating have left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from genview.images.decode import decode
from genview.images.source import ImageSource, Tell, UnreadableImage, silent
from genview.images.thumbnail import thumbnail
from genview.report.collect import Columns, parts, record, spread
from genview.report.gallery import find, heat, scale_of
from genview.store import RunFolder, find_rows, read_at

NUMBERED = 4000
"""Pairs whose numbers are on the page."""
SIDE = 96
RECORDED = ("key", "class", "draw", "level", "weight", "foreground", "background", "loss", "step")
PICTURES = ("original", "map", "view", "a", "b")
Pictures = dict[str, list[bytes | None]]


@dataclass(frozen=True)
class Gathered:
    """Pairs of a run.

    `columns`: those of `RECORDED`, ratio of the image and score of the view, NaN where they are not known. The first
    pairs have `pictures`, by the names in `PICTURES`: files of small images, None where one is not at hand. They are
    a sample of the whole training, and the others an even sample of the latest `recorded` pairs.
    """

    columns: Columns
    pictures: Pictures
    recorded: int

    @property
    def pictured(self) -> int:
        """How many pairs have pictures."""
        return len(self.pictures["a"])


@dataclass(frozen=True)
class Lookup:
    """A table whose rows are found by what names them."""

    table: Columns
    rows: Mapping[Hashable, int]

    def number(self, column: str, name: Hashable) -> float:
        """Return a number, NaN where it is not known."""
        return float(self.table[column][self.rows[name]]) if name in self.rows and column in self.table else np.nan


def gather(
    run: RunFolder, pictured: Columns | None, latest: Columns, source: ImageSource | None, tell: Tell = silent
) -> Gathered:
    """Join pairs with the ratio and map of their image and with the score and picture of their view.

    Args:
        run: whose analysis and views are looked up.
        pictured: pairs with the columns a and b, files of both views as training saw them; None where there are none.
        latest: the latest pairs.
        source: of the originals; without it they are not shown.
        tell: is told how many pictures are made.

    Raises:
        UserError: a part of the analysis or of the views is damaged.
    """
    shown = {name: latest[name][:0] for name in RECORDED} if pictured is None else pictured
    rest = _rest(shown, latest)
    columns = {name: np.concatenate([shown[name], latest[name][rest]]) for name in RECORDED}
    images, views = _images(run, set(columns["key"])), _views(run, set(columns["key"]))
    columns["ratio"] = np.array([images.number("ratio", key) for key in columns["key"]])
    columns["score"] = np.array([views.number("score", name) for name in _names(columns)])
    pictures: Pictures = {name: list(shown.get(name, ())) for name in "ab"}
    count = len(pictures["a"])
    originals = find(source, set(columns["key"][:count]), tell) if source is not None else {}
    own = [originals.get(key) for key in columns["key"][:count]]
    pictures["original"] = [None if image is None else thumbnail(image, SIDE) for image in own]
    pictures["map"] = _maps(run, own, images, columns["key"])
    pictures["view"] = [_view(run, views, name) for name in _names(columns)[:count]]
    return Gathered(columns, pictures, len(latest["key"]))


def _rest(shown: Columns, latest: Columns) -> np.ndarray:
    """Rows of the latest pairs that are shown by their numbers alone."""
    known = set(zip(*(shown[name].tolist() for name in ("key", "step", "weight")), strict=True))
    names = zip(*(latest[name].tolist() for name in ("key", "step", "weight")), strict=True)
    return np.array(spread([row for row, name in enumerate(names) if name not in known], NUMBERED), dtype=int)


def _names(columns: Columns) -> list[tuple[str, int]]:
    return list(zip(columns["key"].tolist(), columns["draw"].tolist(), strict=True))


def _images(run: RunFolder, keys: set[str]) -> Lookup:
    table = find_rows(parts(run.analysis), keys, ("key", "ratio", "map"))
    return Lookup(table, {key: row for row, key in enumerate(table.get("key", ()))})


def _views(run: RunFolder, keys: set[str]) -> Lookup:
    wanted = ("key", "draw", "status", "shard", "offset", "length", "score")
    table = find_rows(parts(run.views), keys, wanted)
    made = np.flatnonzero(table["status"] == "made").tolist() if table else []
    return Lookup(table, {(table["key"][row], int(table["draw"][row])): row for row in made})


def _maps(run: RunFolder, own: Sequence[Image.Image | None], images: Lookup, keys: np.ndarray) -> list[bytes | None]:
    rows = [images.rows.get(key) for key in keys[: len(own)]]
    summary = record(run.analysis / "summary.json")
    if summary is None or "map" not in images.table:
        return [None] * len(own)
    maps = images.table["map"].astype(np.float64).reshape(-1, *summary["grid"])
    scale = scale_of(maps)
    return [
        None
        if image is None or row is None
        else thumbnail(Image.fromarray(heat(np.asarray(image), maps[row] / scale)), SIDE)
        for image, row in zip(own, rows, strict=True)
    ]


def _view(run: RunFolder, views: Lookup, name: Hashable) -> bytes | None:
    if (row := views.rows.get(name)) is None:
        return None
    shard, offset, length = (views.table[column][row] for column in ("shard", "offset", "length"))
    try:
        return thumbnail(decode(read_at(run.views / str(shard), int(offset), int(length))), SIDE)
    except (OSError, UnreadableImage):
        return None
