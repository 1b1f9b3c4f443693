"""A folder of images: class folders, or a tree of any depth without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from genview.errors import UserError, nearest
from genview.images.combine import limited
from genview.images.decode import ImageFile
from genview.images.index import Index, Listed
from genview.images.source import ImageSource, Tell, bytes_of, checked, silent

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
Labels = Literal["auto", "folders", "none"]
TOLD_EVERY = 1000
"""Images between two words about the progress of a scan."""


@dataclass(frozen=True)
class FolderImages:
    """`labels`: 'folders' takes the first folder below `root` as the class, 'none' takes none, and 'auto' takes
    classes where every image lies in root/CLASS/ itself and there are at least two.
    """

    root: str
    kind: Literal["folder"] = "folder"
    labels: Labels = "auto"
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:
        """Find the images.

        Args:
            keep: a folder for the index, which is made once and then opened in no time; without it, the images are
                looked for each time. Files that come later are not seen: delete `keep` to look again.
            tell: is told how many images the scan has found.

        Raises:
            UserError: the folder is missing or holds no image, or `keep` is the index of another one.
        """
        return limited(Folder(Path(self.root), self.labels, keep, tell), self.limit)


class Folder:
    """Images of a folder in the order of their keys; files are opened when asked for."""

    def __init__(self, root: Path, labels: Labels = "auto", keep: Path | None = None, tell: Tell = silent) -> None:
        self.root = existing(root)
        scan = partial(_listed, root, labels, tell)
        identity = {"root": str(root), "labels": labels}
        self._index = Index.of(scan()) if keep is None else Index.kept(keep, identity, scan)
        self.classes = self._index.classes

    def __len__(self) -> int:
        return len(self._index)

    def key(self, i: int) -> str:
        """Path below the root."""
        return self._index.key(i)

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        return self.opened(i).image()

    def opened(self, i: int) -> ImageFile:
        """Read, not yet decode."""
        return ImageFile(self.data(i))

    def data(self, i: int) -> bytes:
        """Read."""
        return bytes_of(self.root / self._index.key(i))

    def label(self, i: int) -> int | None:
        """Index of the class folder."""
        return self._index.label(i)


def existing(folder: Path) -> Path:
    """Return `folder` if it is one.

    Raises:
        UserError: it is not; the message names the nearest thing that exists.
    """
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, not a folder. For tar and zip files use kind: archives, for lists kind: listing."
        )
    parent = next(p for p in (*folder.absolute().parents, Path()) if p.is_dir())
    missing = folder.absolute().relative_to(parent.absolute()).parts[0]
    hint = nearest(missing, [p.name for p in parent.iterdir()])
    raise UserError(f"There is no folder {folder} ('{missing}' is not in {parent}).{hint}")


def _listed(root: Path, labels: Labels, tell: Tell) -> Listed:
    """Walk `root`; its keys in order, and labels and classes where it has some."""
    keys = checked(sorted(_counted(_keys(root), tell)), str(root))
    if not keys:
        raise UserError(
            f"There is no image in {root}. Images are files ending in {', '.join(sorted(EXTENSIONS))}, "
            "in any folder below it; tar and zip files are read with kind: archives."
        )
    depths = {key.count("/") for key in keys}
    if labels == "folders" and 0 in depths:
        raise UserError(
            f"labels: folders needs every image of {root} to lie in a class folder; some lie beside them."
        )
    tops = sorted({key.partition("/")[0] for key in keys if "/" in key})
    if not (labels == "folders" or (labels == "auto" and depths == {1} and len(tops) > 1)):
        return keys, np.empty(0, np.int32), ()
    index = {name: i for i, name in enumerate(tops)}
    return keys, np.fromiter((index[key.partition("/")[0]] for key in keys), np.int32, len(keys)), tuple(tops)


def _counted(keys: Iterator[str], tell: Tell) -> Iterator[str]:
    """Pass `keys` on, and tell how many they are so far: as long as it goes on there is one more to find."""
    found = 0
    for found, key in enumerate(keys, start=1):
        if found % TOLD_EVERY == 0:
            tell("scan", found, found + 1, "images found so far")
        yield key
    tell("scan", found, found, "images found")


def _keys(root: Path) -> Iterator[str]:
    """Paths of the images below `root`; links to folders are followed once, hidden names are left out."""
    below, visited = [""], set()
    while below:
        place = below.pop()
        if (real := os.path.realpath(root / place)) in visited:
            continue
        visited.add(real)
        inner = []
        for name, is_folder in _entries(root / place):
            if is_folder:
                inner.append(name)
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122 - thrice as fast as Path
                yield place + name
        below += [f"{place}{name}/" for name in sorted(inner, reverse=True)]


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield name and whether it is a folder of all that lies in `folder` and is not hidden."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, _is_folder(entry)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read: {error.strerror}. Its images would be missed."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
