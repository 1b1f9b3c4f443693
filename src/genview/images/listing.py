"""A text file that lists images, one `path` or `path,label` a line, relative to a root."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from genview.errors import UserError
from genview.images.combine import limited
from genview.images.decode import decode
from genview.images.folder import existing
from genview.images.source import ImageSource, UnreadableImage


@dataclass(frozen=True)
class ListingImages:
    """`file` lists paths below `root`; a first line `path` or `path,label` is taken as a header."""

    file: str
    root: str
    kind: Literal["listing"] = "listing"
    limit: int | None = None

    def build(self) -> ImageSource:
        """Read the list.

        Raises:
            UserError: the list is missing, empty, ambiguous, or leads out of the root.
        """
        return limited(Listing(Path(self.file), Path(self.root)), self.limit)


class Listing:
    """Images in the order of the list."""

    def __init__(self, file: Path, root: Path) -> None:
        self.root = existing(root)
        rows = _rows(file)
        self._keys = [_inside(row[0], file) for row in rows]
        if len(set(self._keys)) < len(self._keys):
            twice = next(key for key in self._keys if self._keys.count(key) > 1)
            raise UserError(f"{file} lists '{twice}' more than once; keys must be unique.")
        names = [row[1].strip() for row in rows if len(row) > 1 and row[1].strip()]
        if names and len(names) < len(rows):
            raise UserError(f"{file} gives labels for {len(names)} of {len(rows)} images: label all of them or none.")
        self.classes: tuple[str, ...] = tuple(sorted(set(names)))
        self._labels = [self.classes.index(name) for name in names]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """Path as listed."""
        return self._keys[i]

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        try:
            return decode((self.root / self._keys[i]).read_bytes())
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error

    def label(self, i: int) -> int | None:
        """Index of the listed label."""
        return self._labels[i] if self._labels else None


def _rows(file: Path) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(file.read_text().splitlines()) if row and row[0].strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {file} cannot be read: {error}") from error
    if rows and [cell.strip().lower() for cell in rows[0]] in (["path"], ["path", "label"]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"The list {file} names no image. Write one path, or path,label, on each line.")
    return rows


def _inside(text: str, file: Path) -> str:
    path = PurePosixPath(text.strip())
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file} lists '{text}', which leads out of the root; paths must be relative to it.")
    return path.as_posix()
