"""Evaluations of a frozen backbone. A new one is a file and a place in this union."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genview.evaluation.features import Features, Reading, extract, split, stratified
from genview.evaluation.finetune import FineTune
from genview.evaluation.knn import Knn, knn_accuracy
from genview.evaluation.linear import Linear
from genview.evaluation.probe import Probe
from genview.evaluation.semi import SemiSupervised
from genview.evaluation.subject import Subject
from genview.images import ImageSource

Evaluation = Knn | Linear

__all__ = [
    "Evaluation",
    "Features",
    "FineTune",
    "Knn",
    "Linear",
    "Probe",
    "Reading",
    "SemiSupervised",
    "Subject",
    "evaluate",
    "extract",
    "knn_accuracy",
    "split",
    "stratified",
]


def evaluate(
    backbone: nn.Module,
    train: ImageSource,
    test: ImageSource,
    evaluations: Sequence[Evaluation],
    reading: Reading,
    seed: int = 0,
) -> list[tuple[str, float]]:
    """Extract features once and run every evaluation on them; return (name, value) pairs.

    Raises:
        UserError: the images have no labels.
    """
    known, asked = (extract(backbone, source, reading) for source in (train, test))
    return [row for evaluation in evaluations for row in evaluation.run(known, asked, seed)]
