"""Annotations of objects in COCO's format (Lin et al., ECCV 2014), checked before anything is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from genview.errors import UserError

Row = dict[str, Any]
"""An image, annotation or category as the file has it."""


@dataclass(frozen=True)
class Annotated:
    """Annotated images: `images` in the order of the file, annotations by image's id, names by category's id."""

    file: Path
    images: list[Row]
    annotations: dict[int, list[Row]]
    categories: dict[int, str]

    @property
    def labels(self) -> dict[int, int]:
        """Number of each category, from 1 in the order of their ids; 0 is what is no object."""
        return {category: n for n, category in enumerate(sorted(self.categories), start=1)}


def read(file: Path) -> Annotated:
    """Read a file such as instances_train2017.json.

    Annotations get `iscrowd` 0 where they do not say; those without height or width stay, as COCO's own have some.

    Raises:
        UserError: it is missing, no such file, or something in it does not fit; the message says which row.
    """
    content = _content(file)
    for n, image in enumerate(content["images"]):
        _check(_fits_image(image), file, "images", n, image)
    for n, category in enumerate(content["categories"]):
        _check(_whole(category.get("id")) and isinstance(category.get("name"), str), file, "categories", n, category)
    found: dict[int, list[Row]] = {image["id"]: [] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    if len(found) < len(content["images"]) or len(names) < len(content["categories"]):
        raise UserError(f"{file}: two images or two categories have the same id; ids must be unique.")
    for n, row in enumerate(content["annotations"]):
        _check(_fits_annotation(row, found, names), file, "annotations", n, row)
        found[row["image_id"]].append({**row, "iscrowd": int(row.get("iscrowd", 0))})
    return Annotated(file, content["images"], found, names)


def _content(file: Path) -> dict[str, list[Row]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no annotation file {file}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}.") from error
    for part in ("images", "annotations", "categories"):
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(
                f"{file} has no list of '{part}'. Detection needs COCO's instances format: one JSON object with "
                "images, annotations and categories."
            )
        if not rows:
            raise UserError(f"{file} has an empty list of '{part}'; there is nothing to learn or to score.")
    return content  # type: ignore[no-any-return]  # checked just now


def _check(good: bool, file: Path, part: str, n: int, row: Row) -> None:
    needs = {
        "images": "a whole-number id, width and height above 0, and a file_name inside the folder of images",
        "categories": "a whole-number id and a name",
        "annotations": "the image_id and category_id of rows of this file, a bbox of four numbers, [left, top, "
        "width, height] in pixels, and an iscrowd of 0 or 1 or none",
    }[part]
    if not good:
        raise UserError(f"{file}: {part}[{n}] (id {row.get('id')!r}) does not fit: it needs {needs}.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits_image(row: Row) -> bool:
    name = row.get("file_name")
    inside = isinstance(name, str) and name != "" and not PurePosixPath(name).is_absolute()
    whole = all(_whole(row.get(side)) for side in ("id", "width", "height"))
    return inside and ".." not in PurePosixPath(name or "").parts and whole and min(row["width"], row["height"]) > 0


def _fits_annotation(row: Row, images: Iterable[int], categories: Iterable[int]) -> bool:
    box = row.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(_number(x) for x in box) and min(box[2:]) >= 0
    known = _whole(row.get("image_id")) and row["image_id"] in images
    named = _whole(row.get("category_id")) and row["category_id"] in categories
    return numbers and known and named and row.get("iscrowd", 0) in (0, 1)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def check_masks(found: Annotated) -> None:
    """Check that every annotation has an outline.

    Raises:
        UserError: one has none, or none that can be drawn.
    """
    sides = {image["id"]: [image["height"], image["width"]] for image in found.images}
    for rows in found.annotations.values():
        for row in rows:
            if not _fits_outline(row.get("segmentation"), sides[row["image_id"]]):
                raise UserError(
                    f"{found.file}: annotation {row.get('id')!r} of image {row['image_id']} has no outline that can "
                    "be drawn. Masks need a `segmentation` for every annotation: polygons of six numbers or more, or "
                    "run lengths (`counts` and the image's `size`). For boxes alone set masks: false."
                )


def _fits_outline(outline: object, size: list[int]) -> bool:
    if isinstance(outline, dict):
        return outline.get("size") == size and isinstance(outline.get("counts"), (list, str))
    if not isinstance(outline, list) or not outline:
        return False
    return all(
        isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(_number(x) for x in part)
        for part in outline
    )


def check_same_categories(train: Annotated, test: Annotated) -> None:
    """Check that what is to be found was learned.

    Raises:
        UserError: a category of the test file has another name in the training file, or none.
    """
    for category, name in test.categories.items():
        if train.categories.get(category) != name:
            there = train.categories.get(category, "absent")
            raise UserError(
                f"Category {category} is '{name}' in {test.file}, and in {train.file} it is {there!r}. Both files "
                "must mean the same by an id."
            )


def pycocotools() -> ModuleType:
    """Return the package of masks and scores.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise UserError(
            f"Detection needs pycocotools ({error}). Install it with: pip install 'genview[detection]'"
        ) from error
    return pycocotools  # type: ignore[no-any-return]
