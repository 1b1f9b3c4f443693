"""Features of a frozen backbone for labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genview.errors import UserError
from genview.images import ImageSource, Subset, batches
from genview.images.batches import Unreadable
from genview.seeds import seed_of

Tell = Callable[[str, int, int, str], None]


class Features(NamedTuple):
    """Features `x` N×D, float32 on the CPU, and labels `y` N, int64."""

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

    The backbone is in eval mode meanwhile and gets its own mode back.

    Raises:
        UserError: the source has no labels.
    """
    if not source.classes:
        raise UserError(
            "Evaluation needs labels, and these images have none. Name labelled images as `test`, put images into "
            "class folders, or leave the evaluation out with --set evaluation=[]."
        )
    training = backbone.training
    backbone.eval()
    rows, labels, done = [], [], 0
    for found in batches(
        source,
        size=reading.size,
        batch=reading.batch,
        workers=reading.workers,
        unreadable=reading.unreadable,
    ):
        rows.append(backbone(found.images.to(reading.device)).float().cpu())
        labels += [int(source.label(int(i)) or 0) for i in found.indices]
        done += len(found.indices)
        if reading.tell:
            reading.tell("features", done, len(source), "")
    backbone.train(training)
    return Features(torch.cat(rows), torch.tensor(labels))


def split(source: ImageSource, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a labelled source into two, the second holding `share` of each class (one image at least)."""
    labels = torch.tensor([source.label(i) for i in range(len(source))])
    first, second = stratified(labels, share, seed)
    return Subset(source, first), Subset(source, second)


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return two sorted lists of indices; the second holds `share` of each label (one at least, never all)."""
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "split"))
    second: list[int] = []
    for label in labels.unique():
        own = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(len(own) * share)), len(own) - 1)
        second += own[torch.randperm(len(own), generator=chance)[:count]].tolist()
    held = set(second)
    return [i for i in range(len(labels)) if i not in held], sorted(second)
