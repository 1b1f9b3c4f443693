"""Foreground: a direction in token space, which side of it is foreground, and how much of an image lies there."""

from genview.foreground.analyse import (
    AnalyseSettings,
    Analysis,
    Looking,
    analyse,
    analyse_part,
    begin_analysis,
    fit_direction,
    keep_examples,
    parts_of,
)
from genview.foreground.direction import Direction, ScoreHistogram, TokenMoments, principal_direction
from genview.foreground.masks import foreground_ratio, soft_mask
from genview.foreground.sign import CentrePrior, central

__all__ = [
    "AnalyseSettings",
    "Analysis",
    "CentrePrior",
    "Direction",
    "Looking",
    "ScoreHistogram",
    "TokenMoments",
    "analyse",
    "analyse_part",
    "begin_analysis",
    "central",
    "fit_direction",
    "foreground_ratio",
    "keep_examples",
    "parts_of",
    "principal_direction",
    "soft_mask",
]
