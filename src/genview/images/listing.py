"""A text file that lists images, one `path` or `path,label` a line, relative to a root."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from genview.errors import UserError
from genview.images.combine import limited
from genview.images.decode import ImageFile
from genview.images.folder import existing
from genview.images.source import ImageSource, Tell, bytes_of, checked, silent


@dataclass(frozen=True)
class ListingImages:
    """`file` lists paths below `root`; a first line `path` or `path,label` is taken as a header."""

    file: str
    root: str
    kind: Literal["listing"] = "listing"
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:  # noqa: ARG002 - the list is the index
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
        self._keys = checked([_inside(row[0], file) for row in rows], str(file))
        names = [row[1].strip() for row in rows if len(row) > 1 and row[1].strip()]
        if names and len(names) < len(rows):
            raise UserError(f"{file} gives labels for {len(names)} of {len(rows)} images: label all of them or none.")
        self.classes: tuple[str, ...] = tuple(sorted(set(names)))
        index = {name: i for i, name in enumerate(self.classes)}
        self._labels = [index[name] for name in names]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """Path as listed."""
        return self._keys[i]

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        return self.opened(i).image()

    def opened(self, i: int) -> ImageFile:
        """Read, not yet decode."""
        return ImageFile(bytes_of(self.root / self._keys[i]))

    def label(self, i: int) -> int | None:
        """Index of the listed label."""
        return self._labels[i] if self._labels else None


def _rows(file: Path) -> list[list[str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # spreadsheets put a mark in front
        rows = [row for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The list {file} cannot be read: {error}") from error
    if rows and [cell.strip().lower() for cell in rows[0]] in (["path"], ["path", "label"]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"The list {file} names no image. Write one path, or path,label, on each line.")
    if wide := next((row for row in rows if len(row) > 2), None):
        raise UserError(
            f"{file} has a line of {len(wide)} columns ('{','.join(wide)}'). Write path or path,label; "
            "a path with a comma in it needs quotation marks."
        )
    return rows


def _inside(text: str, file: Path) -> str:
    path = PurePosixPath(text.strip())
    if not text.strip():
        raise UserError(f"{file} has a line without a path. Write one path, or path,label, on each line.")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file} lists '{text}', which leads out of the root; paths must be relative to it.")
    return path.as_posix()
