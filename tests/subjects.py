"""Subjects of evaluations that train: painted images, a small backbone, and one evaluation of each kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from conftest import Painted
from genview.encoders import Backbone, BackboneSettings
from genview.evaluation import FineTune, Probe, Reading, SemiSupervised, Subject
from genview.evaluation.semi import Labels
from genview.images import ImageSource, Subset
from learners import RESNET

SMALL = replace(RESNET, args={**RESNET.args, "drop_path_rate": 0.2})
SIZE = 16
Evaluations = FineTune | Probe | SemiSupervised
FINETUNE = FineTune(length="6 epochs", warmup="1 epochs", batch=12, rate=0.01, smallest_crop=0.5, crop=1.0)
PROBE = Probe(length="5 epochs", batch=12, rates=(1e-6, 1.0), smallest_crop=0.5, crop=1.0)
FEW = SemiSupervised(
    length="4 epochs",
    at_least="12 steps",
    labels=(Labels(0.25, rate=0.1, head_rate=0.5),),
    repeats=2,
    smallest_crop=0.5,
    crop=1.0,
)
ALL: list[Evaluations] = [FINETUNE, PROBE, FEW]


def backbone(settings: BackboneSettings = SMALL) -> Backbone:
    torch.manual_seed(0)
    return Backbone(settings)


class Relabelled:
    """Painted images with other labels than their colours."""

    def __init__(self, source: Painted, labels: list[int]) -> None:
        self.source, self.labels, self.classes = source, labels, source.classes
        self.key, self.image = source.key, source.image

    def __len__(self) -> int:
        return len(self.source)

    def label(self, i: int) -> int:
        return self.labels[i]


def subject(folder: Path, train: ImageSource | None = None, **changes: object) -> Subject:
    def tell(what: str, done: int, total: int, note: str) -> None:
        told.append((what, done, total, note))

    told: list[tuple[str, int, int, str]] = []
    painted = Painted(96, size=20)
    found = Subject(
        load=backbone,
        train=train or Subset(painted, range(48)),
        test=Subset(painted, range(48, 96)),
        reading=Reading(SIZE, batch=32, tell=tell),
        seed=0,
        folder=folder,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def stopping(at: int, name: str = "") -> Reading:
    """Told of step `at` of a training of this name, it stops everything."""

    def tell(what: str, done: int, _total: int, note: str) -> None:
        if name in what and done == at and note:
            raise KeyboardInterrupt

    return Reading(SIZE, batch=32, tell=tell)
