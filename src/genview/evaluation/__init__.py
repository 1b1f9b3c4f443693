"""Evaluations of a pretrained backbone. A new one is a file and a place in this union."""

from __future__ import annotations

from genview.evaluation.detection import Detection
from genview.evaluation.features import Features, Reading, extract, split, stratified
from genview.evaluation.finetune import FineTune
from genview.evaluation.judge import Judges, LooksAhead, judge, look_ahead, name_of
from genview.evaluation.knn import Knn, knn_accuracy
from genview.evaluation.linear import Linear
from genview.evaluation.online import Online
from genview.evaluation.outliers import Outliers
from genview.evaluation.portrait import portray
from genview.evaluation.probe import Probe
from genview.evaluation.robustness import Robustness
from genview.evaluation.semi import SemiSupervised
from genview.evaluation.subject import Subject
from genview.evaluation.transfer import Transfer

Evaluation = Knn | Linear | Probe | SemiSupervised | FineTune | Transfer | Detection | Robustness | Outliers

__all__ = [
    "Detection",
    "Evaluation",
    "Features",
    "FineTune",
    "Judges",
    "Knn",
    "Linear",
    "LooksAhead",
    "Online",
    "Outliers",
    "Probe",
    "Reading",
    "Robustness",
    "SemiSupervised",
    "Subject",
    "Transfer",
    "extract",
    "judge",
    "knn_accuracy",
    "look_ahead",
    "name_of",
    "portray",
    "split",
    "stratified",
]
