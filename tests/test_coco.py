"""Annotations in COCO's format: files that do not fit, targets, and outlines drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coco_like
from coco_like import annotated
from genview.errors import UserError
from genview.evaluation.detection.coco import check_masks, check_same_categories, read
from genview.evaluation.detection.data import Objects, drawn
from genview.evaluation.detection.score import encoded

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"images": [{"id": 1, "file_name": "a.png", "width": 8}]}, r"images\[0\] \(id 1\).*width and height"),
    ({"images": [{"id": 1, "file_name": "../a.png", "width": 8, "height": 8}]}, r"images\[0\].*inside the folder"),
    ({"images": [{"id": 1, "file_name": "a", "width": 8, "height": 8}] * 2}, "the same id"),
    ({"images": []}, "empty list of 'images'"),
    ({"images": 3}, "no list of 'images'"),
    ({"categories": [{"id": "x", "name": "y"}]}, r"categories\[0\] \(id 'x'\)"),
    ({"annotations": [coco_like.annotation(99, 0, [0, 0, 2, 2])]}, r"annotations\[0\].*image_id"),
    ({"annotations": [coco_like.annotation(0, 1, [0, 0, 2, 2])]}, r"annotations\[0\].*category_id"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, 2, 2]) | {"bbox": [0, 0, 2]}]}, "bbox of four numbers"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, -2, 2])]}, "bbox of four numbers"),
    ({"annotations": [coco_like.annotation(0, 0, [0, 0, 2, 2], iscrowd="no")]}, "iscrowd of 0 or 1"),
]


@pytest.mark.parametrize(("wrong", "message"), BROKEN)
def test_files_that_do_not_fit_say_which_row(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        annotated({**coco_like.content(2), **wrong}, tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotation file"):
        read(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="instances format"):
        read(tmp_path / "list.json")


def test_outlines_and_categories_that_do_not_fit(tmp_path: Path) -> None:
    made = coco_like.content(2)
    check_masks(annotated(made, tmp_path))
    for wrong in (None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "6"]], {"counts": [1], "size": [3, 3]}):
        made["annotations"][1]["segmentation"] = wrong
        with pytest.raises(UserError, match="annotation 1 of image 1 has no outline"):
            check_masks(annotated(made, tmp_path))
    named = {**made, "categories": [{"id": 0, "name": "rot"}, {"id": 7, "name": "blue"}]}
    with pytest.raises(UserError, match="Category 0 is 'rot'"):
        check_same_categories(annotated(made, tmp_path), annotated(named, tmp_path))


def test_targets_have_no_crowd_and_no_empty_box(tmp_path: Path) -> None:
    made = coco_like.content(3)
    made["annotations"] = [
        coco_like.annotation(0, 7, [2, 3, 10, 20]),
        coco_like.annotation(0, 0, [60, 40, 30, 30]),  # reaches out of the image
        coco_like.annotation(0, 7, [5, 5, 0, 9]),
        coco_like.annotation(0, 7, [5, 5, 9, 9], iscrowd=1),
        coco_like.annotation(1, 7, [5, 5, 9, 9], iscrowd=1),
    ]
    coco_like.write(tmp_path, made)
    found = read(tmp_path / "instances.json")
    assert found.labels == {0: 1, 7: 2}
    shown = Objects(found, tmp_path / "images", masks=True, empty=False)
    assert [image["id"] for image in shown.images] == [0]
    assert len(Objects(found, tmp_path / "images")) == 3
    target = shown[0, 0].target
    assert target["boxes"].tolist() == [[2, 3, 12, 23], [60, 40, 64, 48]]
    assert target["labels"].tolist() == [2, 1]
    expected = np.zeros((48, 64), np.uint8)
    expected[3:23, 2:12] = 1
    assert (target["masks"][0].numpy() == expected).all()


def test_run_lengths_and_polygons_draw_the_same() -> None:
    mask = np.zeros((6, 5), np.uint8)
    mask[1:4, 2:4] = 1
    flat = mask.T.flatten().tolist()  # COCO counts down the columns, beginning with what is outside
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    outlines: list[object] = [{"counts": counts, "size": [6, 5]}, encoded(mask), coco_like.outline(2, 1, 2, 3)]
    assert (drawn(outlines, 5, 6) == mask).all()


def test_images_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    coco_like.write(tmp_path, coco_like.content(4))
    found = read(tmp_path / "instances.json")
    shown = Objects(found, tmp_path / "images")
    (tmp_path / "images/part/001.png").unlink()
    (tmp_path / "images/part/002.png").write_bytes(b"none")
    found.images[3]["width"] = 65
    reasons = [shown[0, i].reason for i in range(4)]
    assert reasons[0] == ""
    assert "No such file" in reasons[1]
    assert "not an image" in reasons[2]
    assert reasons[3] == "it has 64×48 pixels, and its annotations are for 65×48"
    with pytest.raises(UserError, match=r"no part/000\.png"):
        Objects(found, tmp_path)
    with pytest.raises(UserError, match="no folder"):
        Objects(found, tmp_path / "imgs")
