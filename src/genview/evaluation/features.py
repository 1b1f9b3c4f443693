"""Features of a frozen backbone for labelled images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from genview.errors import UserError, writing
from genview.images import ImageSource, Subset, batches
from genview.images.batches import Unreadable
from genview.seeds import seed_of

MOST = 4_000_000_000
"""Bytes of features that are kept in memory."""
Tell = Callable[[str, int, int, str], None]


class Features(NamedTuple):
    """Features `x` N×D, float32 or float16 on the CPU, and labels `y` N, int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Reading:
    """How images are read: side in pixels, batch, decoding processes, device, and who is told what."""

    size: int
    batch: int = 256
    workers: int = 0
    device: str = "cpu"
    tell: Tell | None = None
    unreadable: Unreadable | None = None


@torch.no_grad()
def extract(backbone: nn.Module, source: ImageSource, reading: Reading) -> Features:
    """Encode every image of a labelled source, resized and cropped from the centre.

    The backbone is in eval mode meanwhile; every part of it gets its own mode back. Features of more than `MOST`
    bytes are kept as float16 in a file without a name, which the system reads as it is needed.

    Raises:
        UserError: an image has no label, no image can be read, features are not finite, or the disk is full.
    """
    labels = labels_of(source)
    modes = {part: part.training for part in backbone.modules()}
    backbone.eval()
    kept: Tensor | None = None
    indices: list[int] = []
    try:
        for found in batches(
            source,
            size=reading.size,
            batch=reading.batch,
            workers=reading.workers,
            unreadable=reading.unreadable,
        ):
            rows = backbone(found.images.to(reading.device)).float().cpu()
            _want_finite(rows, source, found.indices)
            kept = room(len(source), rows.shape[1]) if kept is None else kept
            kept[len(indices) : len(indices) + len(rows)] = rows
            indices += found.indices.tolist()
            if reading.tell:
                reading.tell("features", len(indices), len(source), "")
    finally:
        for part, training in modes.items():
            part.training = training
    if kept is None:
        raise UserError("None of the images to evaluate on can be read; the quarantine list says why.")
    return Features(kept[: len(indices)], labels[indices])


def _want_finite(rows: Tensor, source: ImageSource, indices: Tensor) -> None:
    bad = indices[~rows.isfinite().all(dim=1)]
    if len(bad):
        raise UserError(
            f"The backbone's features of '{source.key(int(bad[0]))}' are not finite, so it cannot be judged: its "
            "weights are damaged, or its training has diverged (lower training.optimizer.rate, lengthen "
            "training.warmup, or use float32)."
        )


def room(count: int, width: int, most: int = MOST) -> Tensor:
    """Return room for features, count×width: float32 in memory, or where that takes more than `most` bytes, a file.

    The file is one of float16 in the system's folder for temporary files (TMPDIR), and gone with the tensor.

    Raises:
        UserError: the disk is full.
    """
    if 4 * count * width <= most:
        return torch.empty(count, width)
    place = Path(tempfile.gettempdir())
    with writing(place), tempfile.TemporaryFile(dir=place) as file:
        file.truncate(2 * count * width)
        if hasattr(os, "posix_fallocate"):  # a full disk is met now, not when pages are written
            os.posix_fallocate(file.fileno(), 0, 2 * count * width)
        return torch.from_numpy(np.memmap(file, np.float16, "r+", shape=(count, width)))


def labels_of(source: ImageSource) -> Tensor:
    """Return the labels of all images, int64 N.

    Raises:
        UserError: an image has no label.
    """
    labels = [source.label(i) for i in range(len(source))] if source.classes else []
    known = [label for label in labels if label is not None]
    if len(known) < len(source):
        raise UserError(
            "Evaluation needs a label for every image, and these images have none. Name labelled images as `test`, "
            "put images into class folders, or leave the evaluation out with --set evaluation=[]."
        )
    return torch.tensor(known)


def split(source: ImageSource, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a labelled source into two, the second holding `share` of each class (one image at least).

    Raises:
        UserError: an image has no label.
    """
    first, second = stratified(labels_of(source), share, seed)
    return Subset(source, first), Subset(source, second)


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return two sorted lists of indices; the second holds `share` of each label (one at least, never all)."""
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "split"))
    held = torch.zeros(len(labels), dtype=torch.bool)
    _, counts = labels.unique(return_counts=True)
    for own in labels.argsort(stable=True).split(counts.tolist()):
        count = min(max(1, round(len(own) * share)), len(own) - 1)
        held[own[torch.randperm(len(own), generator=chance)[:count]]] = True
    return (~held).nonzero().flatten().tolist(), held.nonzero().flatten().tolist()
