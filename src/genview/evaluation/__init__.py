"""Evaluations of a pretrained backbone. A new one is a file and a place in this union."""

from __future__ import annotations

from genview.evaluation.features import Features, Reading, extract, split, stratified
from genview.evaluation.judge import Judges, judge, name_of
from genview.evaluation.knn import Knn, knn_accuracy
from genview.evaluation.linear import Linear
from genview.evaluation.subject import Subject

Evaluation = Knn | Linear

__all__ = [
    "Evaluation",
    "Features",
    "Judges",
    "Knn",
    "Linear",
    "Reading",
    "Subject",
    "extract",
    "judge",
    "knn_accuracy",
    "name_of",
    "split",
    "stratified",
]
