"""What a detector finds, and how good that is: COCO's average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genview.errors import UserError
from genview.evaluation.detection.coco import Annotated, Row, pycocotools
from genview.evaluation.detection.data import Example, Objects
from genview.evaluation.detection.train import on_device, tell_unreadable
from genview.evaluation.features import Reading

What = Literal["bbox", "segm"]


@torch.no_grad()
def detect(
    detector: nn.Module, objects: Objects, categories: dict[int, int], reading: Reading
) -> dict[str, list[Any]]:
    """Look at every image; return `found`, rows as COCO's results have them, and `seen`, ids of the images.

    Images are taken one at a time, so that none is padded for the sake of its neighbours. `categories` gives the ids
    of the labels that the detector has learned.

    Raises:
        UserError: no image can be read.
    """
    detector.to(reading.device).eval()
    loader: DataLoader[Example] = DataLoader(
        objects,
        batch_size=None,
        sampler=[(0, i) for i in range(len(objects))],  # positions, not indices
        num_workers=reading.workers,
    )
    found, seen = list[Row](), list[int]()
    for n, example in enumerate(loader, start=1):
        tell_unreadable(example, reading)
        if not example.reason:
            (output,) = detector(on_device([example], reading.device)[0])
            found += rows(output, example.id, categories)
            seen.append(example.id)
        if reading.tell:
            reading.tell("detect", n, len(objects), f"{len(found)} objects")
    if not seen:
        raise UserError(f"None of the images in {objects.folder} can be used; the quarantine list says why.")
    return {"found": found, "seen": seen}


def rows(output: dict[str, Tensor], image: int, categories: dict[int, int]) -> Iterator[Row]:
    """Yield a detector's output for an image as rows of COCO's results format."""
    masks = output.get("masks")
    for n, (box, label, score) in enumerate(
        zip(output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ):
        left, top, right, bottom = box
        row = {"image_id": image, "category_id": categories[label], "score": score}
        row["bbox"] = [left, top, right - left, bottom - top]
        if masks is not None:
            row["segmentation"] = encoded(masks[n, 0].float().cpu().numpy() > 0.5)
        yield row


def encoded(mask: np.ndarray) -> Row:
    """Return a mask H×W as run lengths."""
    rle = pycocotools().mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def average_precision(truth: Annotated, found: list[Row], seen: list[int], what: What) -> dict[str, float]:
    """Return AP (mean over overlaps of 0.50, 0.55, … 0.95), AP50 and AP75 over the images that were seen.

    Precision is averaged over 101 values of recall and over the categories that occur; a crowd may be found any
    number of times, and need not be.

    Raises:
        UserError: nothing is to be found on these images.
    """
    if not any(not row["iscrowd"] for image in seen for row in truth.annotations[image]):
        raise UserError(f"{truth.file} has no object on the images that can be read: there is nothing to score.")
    if not found:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    tools = pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        known = _truth(tools.coco.COCO(), truth)
        # Its reader takes rows that have outlines for masks alone, and computes their boxes anew.
        own = [{k: v for k, v in row.items() if what == "segm" or k != "segmentation"} for row in found]
        own = [{k: v for k, v in row.items() if what == "bbox" or k != "bbox"} for row in own]
        scoring = tools.cocoeval.COCOeval(known, known.loadRes(own), what)
        scoring.params.imgIds = sorted(seen)
        scoring.evaluate()
        scoring.accumulate()
    return _summary(scoring.eval["precision"])


def _truth(coco: Any, truth: Annotated) -> Any:
    rows = [row for image in truth.images for row in truth.annotations[image["id"]]]
    coco.dataset = {
        "images": truth.images,
        "categories": [{"id": category, "name": name} for category, name in truth.categories.items()],
        # A match is recorded by the annotation's id, and 0 stands for none: ids begin at 1.
        # Areas tell sizes apart, which is not done here: those of the boxes do.
        "annotations": [
            {**row, "id": n, "area": row["bbox"][2] * row["bbox"][3]} for n, row in enumerate(rows, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _summary(precision: np.ndarray) -> dict[str, float]:
    """Average precisions T×R×K×A×M (overlaps, recalls, categories, sizes, detections an image); −1: no object."""
    every = precision[:, :, :, 0, -1]
    parts = {"ap": every, "ap50": every[0], "ap75": every[5]}
    return {name: float(part[part > -1].mean()) for name, part in parts.items()}
