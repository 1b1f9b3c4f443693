"""Evaluations of a pretrained backbone. A new one is a file and a place in this union."""

from __future__ import annotations

from genview.evaluation.detection import Detection
from genview.evaluation.features import Features, Reading, extract, split, stratified
from genview.evaluation.judge import Judges, judge, name_of
from genview.evaluation.knn import Knn, knn_accuracy
from genview.evaluation.linear import Linear
from genview.evaluation.outliers import Outliers
from genview.evaluation.portrait import portray
from genview.evaluation.robustness import Robustness
from genview.evaluation.subject import Subject
from genview.evaluation.transfer import Transfer

Evaluation = Knn | Linear | Transfer | Detection | Robustness | Outliers

__all__ = [
    "Detection",
    "Evaluation",
    "Features",
    "Judges",
    "Knn",
    "Linear",
    "Outliers",
    "Reading",
    "Robustness",
    "Subject",
    "Transfer",
    "extract",
    "judge",
    "knn_accuracy",
    "name_of",
    "portray",
    "split",
    "stratified",
]
