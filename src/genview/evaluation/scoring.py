"""What evaluations that train have in common around the training: labels, identity, and the share that is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from genview.encoders.backbone import Backbone
from genview.errors import UserError
from genview.evaluation.continuing import digest_of_images, digest_of_weights
from genview.evaluation.features import Reading, labels_of
from genview.evaluation.subject import Subject
from genview.evaluation.supervised import STATE, Supervised
from genview.images import ImageSource, batches
from genview.images.source import silent
from genview.store import claim, write_json

Scores = dict[str, float]
Predict = Callable[[Tensor], Tensor]
"""Images B×3×S×S in [0, 1] on the device → logits B×C, or B×H×C of H heads."""


def training_labels(subject: Subject) -> Tensor:
    """Return the labels of the training images.

    Raises:
        UserError: an image has none, a class has no image to learn from, or the test images have other classes.
    """
    labels, classes = labels_of(subject.train), subject.train.classes
    if subject.test.classes != classes:
        raise UserError(
            f"The test images have {len(subject.test.classes)} classes and those to train on {len(classes)}, or they "
            "are named otherwise: a classifier of the one says nothing about the other. Give both the same class "
            "folders."
        )
    empty = [name for k, name in enumerate(classes) if not bool((labels == k).any())]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(classes)} classes have no image to train on (the first: '{empty[0]}'). Remove "
            "the class, add images of it, or raise images.limit."
        )
    return labels


def claimed(subject: Subject, settings: Supervised, backbone: Backbone, **more: object) -> None:
    """Mark the folder as the work of these settings, images and weights, and of `more`, or see that it is.

    Raises:
        UserError: it is the work of others.
    """
    identity = {
        "protocol": settings.protocol,
        "settings": asdict(settings),
        "seed": subject.seed,
        "size": subject.reading.size,
        "train": digest_of_images(subject.train),
        "test": digest_of_images(subject.test),
        "backbone": digest_of_weights(backbone),
        **more,
    }
    claim(subject.folder, identity)


def once(folder: Path, work: Callable[[], Scores]) -> Scores:
    """Return the scores in `folder`, or work them out and leave them there in place of the training's state.

    Raises:
        UserError: the file is damaged, or the disk is full.
    """
    path = folder / "scores.json"
    if not path.exists():
        write_json(path, list(work().items()))  # a list keeps the order
        (folder / STATE).unlink(missing_ok=True)
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and evaluate again.") from error


@torch.no_grad()
def top(predict: Predict, source: ImageSource, settings: Supervised, reading: Reading, name: str) -> list[Tensor]:
    """Return the share of images whose label is the best guess, and with over 5 classes that among the best five.

    Images are resized and cropped from the centre. Each share is a scalar, or H values where `predict` is of H heads.

    Raises:
        UserError: none of the images can be read.
    """
    labels, count = labels_of(source), 0
    places = [1, 5] if len(source.classes) > 5 else [1]
    right = [torch.zeros((), dtype=torch.float64) for _ in places]
    wide = round(reading.size / settings.crop)
    for found in batches(
        source, size=wide, batch=reading.batch, workers=reading.workers, unreadable=reading.unreadable
    ):
        images = middle(found.images, reading.size).to(reading.device, memory_format=torch.channels_last)
        logits, own = predict(images).float().cpu(), labels[found.indices]
        guesses = logits.topk(places[-1], dim=-1).indices
        hits = guesses == own.view(-1, *[1] * (guesses.ndim - 1))
        hits &= logits.isfinite().all(dim=-1, keepdim=True)  # what diverged guesses nothing, not anything
        right = [total + hits[..., :k].any(dim=-1).sum(dim=0) for total, k in zip(right, places, strict=True)]
        count += len(own)
        (reading.tell or silent)(name, count, len(source), "")
    if not count:
        raise UserError("None of the images to evaluate on can be read; the quarantine list says why.")
    return [total / count for total in right]


def middle(images: Tensor, size: int) -> Tensor:
    """Cut the centre out of square images B×3×W×W."""
    edge = (images.shape[-1] - size) // 2
    return images[..., edge : edge + size, edge : edge + size]
