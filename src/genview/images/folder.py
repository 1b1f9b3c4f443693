"""A folder of images: class folders, or a tree of any depth without labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from PIL import Image

from genview.errors import UserError, nearest
from genview.images.combine import limited
from genview.images.decode import decode
from genview.images.source import ImageSource, UnreadableImage, checked

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
Labels = Literal["auto", "folders", "none"]


@dataclass(frozen=True)
class FolderImages:
    """`labels`: 'folders' takes the first folder below `root` as the class, 'none' takes none, and 'auto' takes
    classes where every image lies in root/CLASS/ itself and there are at least two.
    """

    root: str
    kind: Literal["folder"] = "folder"
    labels: Labels = "auto"
    limit: int | None = None

    def build(self) -> ImageSource:
        """Find the images.

        Raises:
            UserError: the folder is missing or holds no image.
        """
        return limited(Folder(Path(self.root), self.labels), self.limit)


class Folder:
    """Images of a folder in the order of their keys; files are opened when asked for."""

    def __init__(self, root: Path, labels: Labels = "auto") -> None:
        self.root = existing(root)
        self._keys = checked(sorted(_keys(self.root)), str(root))
        if not self._keys:
            raise UserError(
                f"There is no image in {root}. Images are files ending in {', '.join(sorted(EXTENSIONS))}, "
                "in any folder below it; tar and zip files are read with kind: archives."
            )
        depths = {key.count("/") for key in self._keys}
        tops = sorted({key.partition("/")[0] for key in self._keys if "/" in key})
        labelled = labels == "folders" or (labels == "auto" and depths == {1} and len(tops) > 1)
        if labels == "folders" and 0 in depths:
            raise UserError(
                f"labels: folders needs every image of {root} to lie in a class folder; some lie beside them."
            )
        self.classes: tuple[str, ...] = tuple(tops) if labelled else ()
        self._index = {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """Path below the root."""
        return self._keys[i]

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        try:
            data = (self.root / self._keys[i]).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error
        return decode(data)

    def label(self, i: int) -> int | None:
        """Index of the class folder."""
        return self._index[self._keys[i].partition("/")[0]] if self._index else None


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


def _closed(error: OSError) -> NoReturn:
    raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}. Its images would be missed.")


def _keys(root: Path) -> list[str]:
    """Paths of the images below `root`; links to folders are followed once, hidden names are left out."""
    found: list[str] = []
    visited: set[Path] = set()
    for place, folders, files in os.walk(root, onerror=_closed, followlinks=True):
        real = Path(place).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(root)
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                found.append((below / name).as_posix())
    return found
