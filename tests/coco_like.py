"""Annotated images in COCO's format, drawn: red and blue rectangles on grey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genview.evaluation.detection.coco import Annotated, read

CATEGORIES = [{"id": 7, "name": "blue"}, {"id": 0, "name": "red"}]
"""Ids with a gap, a zero and out of order, as files of users have them."""
COLOURS = {0: (220, 30, 30), 7: (30, 30, 220)}


def outline(left: float, top: float, width: float, height: float) -> list[list[float]]:
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def annotation(image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "segmentation": outline(*box), **more}


def content(count: int = 6, sides: tuple[int, int] = (64, 48), seed: int = 0) -> dict[str, Any]:
    """`count` images of one or two rectangles each; ids begin at 0, which a scorer must survive."""
    chance = np.random.default_rng(seed)
    images, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for i in range(count):
        images.append({"id": i, "file_name": f"part/{i:03d}.png", "width": sides[0], "height": sides[1]})
        for k in range(1 + i % 2):
            width, height = (int(side) for side in chance.integers(14, 24, 2))
            left, top = k * sides[0] // 2 + int(chance.integers(0, 8)), int(chance.integers(0, sides[1] - height))
            rows.append(annotation(i, (0, 7)[int(chance.integers(2))], [left, top, width, height], id=len(rows)))
    return {"images": images, "annotations": rows, "categories": CATEGORIES}


def write(folder: Path, made: dict[str, Any], name: str = "instances.json") -> Path:
    """Write the annotations, and the images they describe."""
    for image in made["images"]:
        pixels = np.full((image["height"], image["width"], 3), 120, np.uint8)
        for row in made["annotations"]:
            if row["image_id"] == image["id"]:
                left, top, width, height = (int(x) for x in row["bbox"])
                pixels[top : top + height, left : left + width] = COLOURS[row["category_id"]]
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / name).write_text(json.dumps(made))
    return folder / name


def annotated(made: dict[str, Any], folder: Path) -> Annotated:
    (folder / "own.json").write_text(json.dumps(made))
    return read(folder / "own.json")
