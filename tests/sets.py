"""Sets of torchvision's in their layout on disk, a few coloured images each, and a backbone that sees colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import scipy.io
from PIL import Image
from torch import Tensor, nn

from conftest import Painted
from genview.encoders import Backbone
from genview.evaluation import Reading
from genview.evaluation.subject import Subject

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def paint(path: Path, label: int, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12, 16, 3), COLOURS[label], np.uint8)
    pixels[:, :4] = (17 * number) % 256
    Image.fromarray(pixels).save(path, quality=95)


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def food(root: Path) -> None:
    folder, names = root / "food-101", ("apple_pie", "steak")
    for part, start in (("train", 0), ("test", 3)):
        rows = {name: [f"{name}/{start + n}" for n in range(3 if part == "train" else 2)] for name in names}
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(rows))
        for label, name in enumerate(names):
            for row in rows[name]:
                paint(folder / "images" / f"{row}.jpg", label)


def flowers(root: Path) -> None:
    """Six images: 1, 3 and 5 of the first class, the others of the second; two in each part."""
    folder = root / "flowers-102"
    for n in range(1, 7):
        paint(folder / "jpg" / f"image_{n:05d}.jpg", (n + 1) % 2)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    parts = {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[6, 5]]}
    scipy.io.savemat(folder / "setid.mat", {name: np.array(ids) for name, ids in parts.items()})


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for part, numbers in (("trainval", (1, 2, 3)), ("test", (4, 5))):
        rows = [
            (f"{name}_{n}", label) for label, name in enumerate(("Abyssinian", "great_pyrenees")) for n in numbers
        ]
        text(folder / "annotations" / f"{part}.txt", [f"{image} {label + 1} 1 1" for image, label in rows])
        for image, label in rows:
            paint(folder / "images" / f"{image}.jpg", label)


def textures(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    for n, part in enumerate(("train", "val", "test")):
        rows = [f"{name}/{name}_{n}{k}.jpg" for name in ("banded", "woven") for k in range(2)]
        text(folder / "labels" / f"{part}1.txt", rows)
        for row in rows:
            paint(folder / "images" / row, int(row.startswith("woven")))


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    text(folder / "variants.txt", ["707-320", "A340 600"])
    for n, part in enumerate(("train", "val", "test")):
        rows = [(f"{n}{label}{k}", label) for label in range(2) for k in range(2)]
        text(folder / f"images_variant_{part}.txt", [f"{i} {('707-320', 'A340 600')[label]}" for i, label in rows])
        for image, label in rows:
            paint(folder / "images" / f"{image}.jpg", label)


def caltech(root: Path, count: int = 33) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    paint(folder / "BACKGROUND_Google" / "image_0001.jpg", 2)
    for label, name in enumerate(("anchor", "yin_yang")):
        for n in range(1, count + label):
            paint(folder / name / f"image_{n:04d}.jpg", label, n)


def sun(root: Path, count: int = 103) -> None:
    folder = root / "SUN397"
    text(folder / "ClassName.txt", ["/a/abbey", "/c/church/outdoor"])
    for label, name in enumerate(("a/abbey", "c/church/outdoor")):
        for n in range(count - label):
            paint(folder / name / f"sun_{n:03d}.jpg", label, n)


WRITERS: dict[str, Callable[[Path], None]] = {
    "Food101": food,
    "Flowers102": flowers,
    "OxfordIIITPet": pets,
    "DTD": textures,
    "FGVCAircraft": aircraft,
    "Caltech101": caltech,
    "SUN397": sun,
}


class MeanColour(nn.Module):
    """A backbone whose features are the mean colours."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def subject(folder: Path) -> Subject:
    return Subject(lambda: cast(Backbone, MeanColour()), Painted(2), Painted(2), Reading(16), 3, folder)
