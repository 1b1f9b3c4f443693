"""Features of a frozen backbone for labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genview.errors import UserError
from genview.images import ImageSource, Subset, batches
from genview.images.batches import Unreadable
from genview.seeds import seed_of

Tell = Callable[[str, int, int], None]


class Features(NamedTuple):
    """Features `x` N×D, float32 on the CPU, and labels `y` N, int64."""

    x: Tensor
    y: Tensor


@torch.no_grad()
def extract(
    backbone: nn.Module,
    source: ImageSource,
    *,
    size: int,
    batch: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    tell: Tell | None = None,
    unreadable: Unreadable | None = None,
) -> Features:
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
    for found in batches(source, size=size, batch=batch, workers=workers, unreadable=unreadable):
        rows.append(backbone(found.images.to(device)).float().cpu())
        labels += [int(source.label(int(i)) or 0) for i in found.indices]
        done += len(found.indices)
        if tell:
            tell("features", done, len(source))
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
