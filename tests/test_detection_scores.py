"""Average precision of boxes and masks by hand and against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coco_like
from coco_like import annotated
from genview.errors import UserError
from genview.evaluation.detection.coco import Annotated
from genview.evaluation.detection.score import average_precision, rows
from references import average_precision as by_loops


def truth_of(boxes: list[dict[str, Any]], folder: Path, images: int = 1) -> Annotated:
    made = coco_like.content(images)
    return annotated({**made, "annotations": boxes}, folder)


def found(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_a_box_that_overlaps_by_six_tenths(tmp_path: Path) -> None:
    """Overlap 60 / 100: found at 0.5, 0.55 and 0.6 of the ten overlaps."""
    truth = truth_of([coco_like.annotation(0, 7, [0, 0, 10, 10], id=0)], tmp_path)
    scores = average_precision(truth, [found(0, 7, [0, 0, 10, 6], 0.9)], [0], "bbox")
    assert scores == pytest.approx({"ap": 0.3, "ap50": 1.0, "ap75": 0.0})
    assert average_precision(truth, [], [0], "bbox") == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_a_false_alarm_before_and_behind_the_hit(tmp_path: Path) -> None:
    truth = truth_of([coco_like.annotation(0, 7, [0, 0, 10, 10])], tmp_path)
    hit, miss = found(0, 7, [0, 0, 10, 10], 0.5), found(0, 7, [30, 30, 9, 9], 0.9)
    assert average_precision(truth, [hit, miss], [0], "bbox")["ap"] == pytest.approx(0.5)
    assert average_precision(truth, [hit, {**miss, "score": 0.1}], [0], "bbox")["ap"] == pytest.approx(1.0)


def test_crowds_cost_nothing_and_images_that_were_not_seen_do_not_count(tmp_path: Path) -> None:
    boxes = [
        coco_like.annotation(0, 7, [0, 0, 10, 10]),
        coco_like.annotation(0, 7, [20, 0, 40, 40], iscrowd=1),
        coco_like.annotation(1, 0, [0, 0, 10, 10]),
    ]
    truth = truth_of(boxes, tmp_path, images=2)
    rows = [found(0, 7, [0, 0, 10, 10], 0.5), found(0, 7, [21, 1, 9, 9], 0.9), found(0, 7, [40, 9, 9, 9], 0.8)]
    assert average_precision(truth, rows, [0], "bbox")["ap"] == pytest.approx(1.0)
    assert average_precision(truth, rows, [0, 1], "bbox")["ap"] == pytest.approx(0.5), "category 0 is not found"
    with pytest.raises(UserError, match="nothing to score"):
        average_precision(truth_of([{**boxes[1]}], tmp_path), rows[:1], [0], "bbox")


def test_average_precision_against_loops(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    made, seen = coco_like.content(8), list(range(7))
    guesses = []
    for row in made["annotations"]:
        for _ in range(int(chance.integers(0, 4))):
            box = (np.array(row["bbox"]) + chance.normal(0, 2, 4)).clip(0.5).tolist()
            guesses.append(found(row["image_id"], int(chance.choice([0, 7])), box, float(chance.random())))
    truth, own = annotated(made, tmp_path), [guess for guess in guesses if guess["image_id"] in seen]
    expected = [by_loops(made["annotations"], own, seen, overlap / 100) for overlap in range(50, 100, 5)]
    scores = average_precision(truth, guesses, seen, "bbox")
    assert 0.1 < expected[0] < 0.95
    assert scores["ap50"] == pytest.approx(expected[0])
    assert scores["ap75"] == pytest.approx(expected[5])
    assert scores["ap"] == pytest.approx(np.mean(expected))


def test_masks_are_scored_by_their_pixels(tmp_path: Path) -> None:
    """A mask of the left half of a square: overlap 0.5, whatever its box says."""
    truth = truth_of([coco_like.annotation(0, 7, [10, 10, 20, 20])], tmp_path)
    half = torch.zeros(1, 1, 48, 64)
    half[0, 0, 10:30, 10:20] = 1
    box = torch.tensor([[10.0, 10, 30, 30]])
    output = {"boxes": box, "labels": torch.tensor([2]), "scores": torch.tensor([0.7]), "masks": half}
    (row,) = rows(output, 0, {2: 7})
    assert (row["bbox"], row["category_id"]) == ([10, 10, 20, 20], 7)
    assert average_precision(truth, [row], [0], "segm") == pytest.approx({"ap": 0.1, "ap50": 1.0, "ap75": 0.0})
    assert average_precision(truth, [row], [0], "bbox")["ap"] == pytest.approx(1.0)
