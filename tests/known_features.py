"""Features that are known: clouds of points, subjects that have them, and a backbone of mean colours."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from conftest import Painted
from genview.evaluation import Features, Reading, Subject


def blobs(count: int, spread: float, seed: int, classes: int = 3, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    y = torch.arange(count) % classes
    return Features(centres[y] + spread * torch.randn(count, width, generator=generator), y)


def known(train: Features, test: Features, seed: int = 0) -> Subject:
    """A subject whose features are these."""
    nothing = Painted(0)
    subject = Subject(lambda: MeanColour(), nothing, nothing, Reading(16), seed, Path())  # type: ignore[arg-type, return-value]
    subject.__dict__["features"] = (train, test)
    return subject


class MeanColour(nn.Module):
    """A backbone whose features are the mean colours; notes the mode it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []
        self.frozen = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images.mean(dim=(2, 3))
