"""Which image each of some finished views belongs to: by their names, or as a file of the user's says."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from genview.errors import UserError, nearest
from genview.generators.merge import digests
from genview.generators.plan import Tell
from genview.images import ImageFiles, ImageSource
from genview.noise import HIGHEST, UNKNOWN

Layout = Literal["mirrored", "flat", "mapping"]
COLUMNS = ("file", "key", "draw", "level")
CHUNK = 4096
NAMED = 3
"""Names that a message gives as examples."""


class Matches(NamedTuple):
    """M views: place of their file, place of their image, draw, and level or `UNKNOWN`; and what was left over.

    `stray` counts files that belong to no image, `bare` images without a file, and `absent` rows of a mapping
    that name a file which is not there.
    """

    file: np.ndarray
    image: np.ndarray
    draw: np.ndarray
    level: np.ndarray
    stray: int
    bare: int
    absent: int = 0


class Names:
    """Finds names among `count` others; holds 16 bytes of each, and asks `name` for the few it looks at.

    `places` gives for every wanted name its place, or −1 where there is none, and how many places bear it.
    """

    def __init__(self, count: int, name: Callable[[int], str], tell: Callable[[int], None]) -> None:
        self._name = name
        found = np.empty(count, np.uint64)
        for cut in _cuts(count):
            found[cut.start : cut.stop] = digests(map(name, cut))[0]
            tell(cut.stop)
        self._order = np.argsort(found, kind="stable")
        self._digests = found[self._order]

    def places(self, wanted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return place and number of places of each wanted name."""
        asked = digests(wanted)[0]
        first, last = (np.searchsorted(self._digests, asked, side) for side in ("left", "right"))
        count = last - first
        place = np.full(len(wanted), -1, dtype=np.int64)
        place[count > 0] = self._order[first[count > 0]]
        for i in np.flatnonzero(count).tolist():  # digests of 64 bits are not proof
            if self._name(int(place[i])) != wanted[i]:
                place[i], count[i] = -1, 0
        return place, count


def matches(source: ImageSource, found: ImageFiles, layout: Layout, mapping: Path | None, tell: Tell) -> Matches:
    """Find the image of every file; memory takes some 75 bytes a name, and no string.

    Args:
        source: the images.
        found: their views, made elsewhere.
        layout: 'mirrored': a file has the key of its image but for the extension. 'flat': it has the base name
            of exactly one image but for the extension, as the authors' generator writes them. 'mapping': as
            `mapping` says.
        mapping: a CSV with the columns file and key, and draw and level if wanted. Without draws, the files of an
            image are its draws 0, 1, … in the order of the rows.
        tell: is told the progress.

    Raises:
        UserError: a name is ambiguous, no file belongs to any image, or the mapping cannot be read.
    """
    result = _by_file(source, found, mapping, tell) if mapping else _by_name(source, found, _SHORT[layout], tell)
    if not len(result.file):
        raise UserError(
            f"None of the {len(found)} files belongs to an image by layout '{layout}': the first file is "
            f"'{found.key(0)}', the first of {len(source)} images '{source.key(0)}'. Try another layout, or another "
            "folder of the tree."
        )
    return result


def _mirrored(key: str) -> str:
    return posixpath.splitext(key)[0]


def _flat(key: str) -> str:
    return posixpath.splitext(posixpath.basename(key))[0]


_SHORT: Mapping[str, Callable[[str], str]] = {"mirrored": _mirrored, "flat": _flat}


def _by_name(source: ImageSource, found: ImageFiles, short: Callable[[str], str], tell: Tell) -> Matches:
    keys = Names(len(source), lambda i: short(source.key(i)), _telling(tell, len(source)))
    image = np.empty(len(found), np.int64)
    for cut in _cuts(len(found)):
        place, count = keys.places([short(found.key(i)) for i in cut])
        if (count > 1).any():
            twice = [cut[i] for i in np.flatnonzero(count > 1)[:NAMED]]
            raise _ambiguous([found.key(i) for i in twice], "files that fit several images each")
        image[cut.start : cut.stop] = place
        tell("match", cut.stop, len(found), "files")
    file = np.flatnonzero(image >= 0)
    image = image[file]
    places, views = np.unique(image, return_counts=True)
    if (views > 1).any():
        names = [source.key(int(i)) for i in places[views > 1][:NAMED]]
        raise _ambiguous(names, "images that several files fit")
    nothing = np.zeros(len(file), np.int32)
    return Matches(file, image, nothing, nothing + UNKNOWN, len(found) - len(file), len(source) - len(file))


def _ambiguous(names: Sequence[str], what: str) -> UserError:
    return UserError(
        f"Names are ambiguous: there are {what}, such as {', '.join(repr(name) for name in names)}. Say which file "
        "belongs to which image in a CSV of file,key and use layout 'mapping'."
    )


def _by_file(source: ImageSource, found: ImageFiles, mapping: Path, tell: Tell) -> Matches:
    keys = Names(len(source), source.key, _telling(tell, len(source)))
    files = Names(len(found), found.key, _telling(tell, len(found)))
    pieces, absent, drawn = [np.empty((0, 4), np.int64)], 0, False
    lines = _read(mapping)
    while rows := list(islice(lines, CHUNK)):
        file, image = files.places([row.file for row in rows])[0], keys.places([row.key for row in rows])[0]
        absent += int((file < 0).sum())
        drawn = rows[0].draw is not None
        more = [(0 if row.draw is None else row.draw, row.level) for row in rows]
        piece = np.column_stack([file, image, np.array(more, dtype=np.int64)])
        pieces.append(piece[(file >= 0) & (image >= 0)])
    file, image, draw, level = np.concatenate(pieces).T
    if not drawn:
        draw = _numbered(image)
    same = np.lexsort((draw, image))
    again = (np.diff(image[same]) == 0) & (np.diff(draw[same]) == 0)
    if again.any():
        row = same[np.flatnonzero(again)[0]]
        raise UserError(f"{mapping} gives draw {draw[row]} of '{source.key(int(image[row]))}' more than once.")
    stray, bare = len(found) - len(np.unique(file)), len(source) - len(np.unique(image))
    return Matches(file, image, draw.astype(np.int32), level.astype(np.int32), stray, bare, absent)


def _numbered(image: np.ndarray) -> np.ndarray:
    """Number the rows of each image from 0 in the order they come."""
    order = np.argsort(image, kind="stable")
    ordered = image[order]
    starts = np.searchsorted(ordered, ordered, "left")
    draw = np.empty_like(image)
    draw[order] = np.arange(len(image)) - starts
    return draw


@dataclass(frozen=True)
class _Row:
    file: str
    key: str
    draw: int | None
    level: int


def _read(mapping: Path) -> Iterator[_Row]:
    """Read the rows one by one; the file may be long."""
    try:
        with mapping.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            _check_columns(mapping, reader.fieldnames or ())
            for row in reader:
                yield _row(row, f"Line {reader.line_num} of {mapping}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{mapping} cannot be read as a CSV of file,key: {error}") from error


def _check_columns(mapping: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            raise UserError(
                f"{mapping} has a column '{name}'; known are {', '.join(COLUMNS)}.{nearest(name, COLUMNS)}"
            )
    if not {"file", "key"} <= set(names) or len(set(names)) < len(names):
        raise UserError(f"{mapping} needs a header with file and key, and no column twice; it has {list(names)}.")


def _row(row: Mapping[str | None, str | None], where: str) -> _Row:
    if None in row or None in row.values():
        raise UserError(f"{where} has not as many cells as the header; put cells with commas in double quotes.")
    try:
        draw = int(row["draw"] or "") if "draw" in row else None
        level = int(row["level"] or "") if row.get("level") else None
    except ValueError as error:
        raise UserError(
            f"{where}: {error}. Draws are whole numbers; a level may be blank, a draw may not."
        ) from error
    if draw is not None and not 0 <= draw < 2**31:
        raise UserError(f"{where}: a draw is a whole number from 0 on, not {draw}.")
    if level is not None and not 0 <= level <= HIGHEST:
        raise UserError(f"{where}: a level is a whole number from 0 to {HIGHEST}, or blank, not {level}.")
    return _Row((row["file"] or "").removeprefix("./"), row["key"] or "", draw, UNKNOWN if level is None else level)


def _cuts(count: int) -> Iterator[range]:
    return (range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))


def _telling(tell: Tell, total: int) -> Callable[[int], None]:
    return lambda done: tell("match", done, total, "names")
