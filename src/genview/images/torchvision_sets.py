"""Sets of images by name, through torchvision, with the splits that are usual for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from genview.errors import UserError, nearest
from genview.images.combine import Subset, limited
from genview.images.decode import ImageFile
from genview.images.source import ImageSource, Tell, bytes_of, silent
from genview.seeds import seed_of

SetName = Literal[
    "CIFAR10",
    "CIFAR100",
    "Food101",
    "Flowers102",
    "OxfordIIITPet",
    "DTD",
    "FGVCAircraft",
    "Caltech101",
    "SUN397",
]
Part = Literal["train", "val", "test"]

PARTS: dict[SetName, dict[Part, dict[str, Any]]] = {
    "CIFAR10": {"train": {"train": True}, "test": {"train": False}},
    "CIFAR100": {"train": {"train": True}, "test": {"train": False}},
    "Food101": {"train": {"split": "train"}, "test": {"split": "test"}},
    "Flowers102": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "DTD": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "FGVCAircraft": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "Caltech101": {"train": {}, "test": {}},
    "SUN397": {"train": {}, "test": {}},
}
"""What torchvision calls the parts of a set; the last two it gives as a whole."""
DRAWN: dict[str, tuple[int, int | None]] = {"Caltech101": (30, None), "SUN397": (50, 50)}
"""Training and test images of each class (None: all others) of a set that is split here."""
FOLDERS = {"Caltech101": "caltech101/101_ObjectCategories", "SUN397": "SUN397"}
"""Where the images of such a set are below its root: what paths in lists of its parts begin at."""


@dataclass(frozen=True)
class TorchvisionImages:
    """A set of torchvision's below `root`; with `download` it is fetched when it is not there.

    Caltech101 and SUN397 have no split in torchvision's files. Each class is shuffled once and for all: 30 images of
    Caltech's are for training and the others for testing, 50 and 50 of SUN's. DTD's split is its first of ten, and
    the classes of FGVCAircraft are the variants.

    `list` is a text file that names the images of the part instead, for these two: a path a line, such as
    /a/abbey/sun_aaalbzqrimafwbiv.jpg, below the folder of the set's images (`FOLDERS`), with '/' in front or without;
    empty lines do not count. The partitions that the authors of SUN397 publish (Training_01.txt, Testing_01.txt …)
    are such lists. The order is the set's.

    Raises:
        UserError: a `list` is given for a set with a split of its own.
    """

    root: str
    kind: Literal["torchvision"] = "torchvision"
    name: SetName = "CIFAR10"
    part: Part = "train"
    download: bool = False
    list: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.list is not None and self.name not in DRAWN:
            raise UserError(
                f"{self.name} has a split of its own, and lists are for {' and '.join(DRAWN)}: leave {self.list} out."
            )

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:  # noqa: ARG002 - the set is its own index
        """Read the set.

        Raises:
            UserError: its files are not there and could not be fetched, it has no such part, or the list cannot be
                read or names what is no image of the set.
        """
        if self.part not in PARTS[self.name]:
            raise UserError(f"{self.name} has no part '{self.part}', only {', '.join(PARTS[self.name])}.")
        found = _opened(self)
        source: ImageSource = (
            TorchvisionSet(found, self.part) if hasattr(found, "data") else TorchvisionFiles(found, Path(self.root))
        )
        if self.list is not None:
            source = Subset(source, listed(source, Path(self.list), FOLDERS[self.name]))
        elif self.name in DRAWN:
            source = Subset(source, drawn(source, *DRAWN[self.name])[self.part == "test"])
        return limited(source, self.limit)


def _opened(settings: TorchvisionImages) -> Any:
    from torchvision import datasets

    options = PARTS[settings.name][settings.part]
    try:
        return getattr(datasets, settings.name)(Path(settings.root), download=settings.download, **options)
    except (RuntimeError, OSError, ValueError) as error:
        fetch = "It could not be fetched" if settings.download else "Set its `download` to true to fetch it"
        raise UserError(
            f"{settings.name} is not below {settings.root} ({error}). {fetch}, or put torchvision's files there."
        ) from error


class TorchvisionSet:
    """Images of a set that torchvision holds in memory, in its own order; keys are part and number."""

    def __init__(self, found: Any, part: Part) -> None:
        self._set, self._part = found, part
        self.classes: tuple[str, ...] = tuple(found.classes)

    def __len__(self) -> int:
        return len(self._set)

    def key(self, i: int) -> str:
        """Part and number."""
        return f"{self._part}/{i:05d}"

    def image(self, i: int) -> Image.Image:
        """From the array in memory."""
        return Image.fromarray(self._set.data[i])

    def label(self, i: int) -> int | None:
        """As the set gives it."""
        return int(self._set.targets[i])


class TorchvisionFiles:
    """Images of a set that torchvision knows as files, in the order of their paths, which are their keys."""

    def __init__(self, found: Any, root: Path) -> None:
        self._root = root
        rows = sorted(zip((path.relative_to(root).as_posix() for path in _paths(found)), _labels(found), strict=True))
        self._keys, self._own_labels = [key for key, _ in rows], [label for _, label in rows]
        self.classes: tuple[str, ...] = tuple(found.categories if hasattr(found, "categories") else found.classes)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """Path below the root."""
        return self._keys[i]

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        return self.opened(i).image()

    def opened(self, i: int) -> ImageFile:
        """Read, not yet decode."""
        return ImageFile(bytes_of(self._root / self._keys[i]))

    def label(self, i: int) -> int | None:
        """As the set gives it."""
        return self._own_labels[i]


def _paths(found: Any) -> list[Path]:
    """Where the images of a set lie; torchvision has no public name for it."""
    if hasattr(found, "categories"):  # Caltech101 counts the images of each class
        folder = Path(found.root) / "101_ObjectCategories"
        return [
            folder / found.categories[y] / f"image_{n:04d}.jpg" for y, n in zip(found.y, found.index, strict=True)
        ]
    return [Path(path) for path in (found._images if hasattr(found, "_images") else found._image_files)]


def _labels(found: Any) -> list[int]:
    return [int(y) for y in (found.y if hasattr(found, "categories") else found._labels)]


def drawn(source: ImageSource, train: int, test: int | None) -> tuple[Sequence[int], Sequence[int]]:
    """Draw `train` images of each class, and `test` others (None: all others); always the same ones, sorted."""
    labels = np.array([source.label(i) for i in range(len(source))])
    first, second = list[int](), list[int]()
    for label in np.unique(labels):
        chance = torch.Generator().manual_seed(seed_of(0, source.classes[label], 0, "split of a set"))
        own = np.flatnonzero(labels == label)
        own = own[torch.randperm(len(own), generator=chance).numpy()]
        first += own[:train].tolist()
        second += own[train : None if test is None else train + test].tolist()
    return sorted(first), sorted(second)


def listed(source: ImageSource, file: Path, folder: str) -> Sequence[int]:
    """Find the images that a file lists, one path below `folder` a line; sorted.

    Raises:
        UserError: the file cannot be read or is empty, or a line names no image of the source, or one named before.
    """
    index = {source.key(i).removeprefix(f"{folder}/"): i for i in range(len(source))}
    named = [str(PurePosixPath(line.lstrip("/"))) for line in _lines(file)]
    if unknown := [path for path in named if path not in index]:
        name, example = PurePosixPath(unknown[0]).name, next(iter(index), "class/image.jpg")
        alike = [path for path in index if path.endswith(f"/{name}")]  # of SUN397 any two names are close
        raise UserError(
            f"{len(unknown)} of {len(named)} lines of {file} name no image of the set, the first '{unknown[0]}'. "
            f"Paths begin below {folder}, such as '{example}'.{nearest(unknown[0], alike)}"
        )
    if len(set(named)) < len(named):
        twice = next(path for path, count in Counter(named).items() if count > 1)
        raise UserError(f"{file} has '{twice}' more than once. Name every image once.")
    return sorted(index[path] for path in named)


def _lines(file: Path) -> Sequence[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {file} cannot be read: {error}") from error
    if not any(lines):
        raise UserError(f"The list {file} names no image. Write one path on each line.")
    return [line for line in lines if line]
