"""Slow, obvious truths that the fast code is compared with: plain loops over NumPy arrays in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def authors_arrays(data: Path) -> dict[str, np.ndarray]:
    """What the authors' functions return on small inputs, kept beside the real data; skips where it is absent."""
    file = data.parent / "reference" / "golden_small.npz"
    if not file.is_file():
        pytest.skip("golden_small.npz is not in the folder `reference` beside GENVIEW_DATA")
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found}


def principal_direction(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens M×D → first right singular vector of the centred tokens, their mean, share of variance."""
    rows = tokens.astype(np.float64)
    mean = rows.mean(axis=0)
    _, values, vectors = np.linalg.svd(rows - mean, full_matrices=False)
    return vectors[0], mean, float(values[0] ** 2 / (values**2).sum())


def foreground_ratio(tokens: np.ndarray, vector: np.ndarray, threshold: float) -> list[float]:
    """Count, image by image and token by token, the projections above the threshold."""
    ratios = []
    for image in tokens:
        above = sum(
            1 for token in image if sum(float(t) * float(v) for t, v in zip(token, vector, strict=True)) > threshold
        )
        ratios.append(above / len(image))
    return ratios


def adaptive_level(ratio: float) -> int:
    """The table of the paper, read from the top."""
    for edge, level in ((0.2, 0), (0.4, 100), (0.6, 200), (0.8, 300)):
        if ratio <= edge:
            return level
    return 400


def pair_quality(
    tokens_a: np.ndarray, tokens_b: np.ndarray, vector: np.ndarray, gamma: float
) -> tuple[list[float], list[float], list[float]]:
    """Foreground similarities, background similarities and weights, pair by pair as the paper writes them."""
    foreground, background = [], []
    for a, b in zip(tokens_a.astype(np.float64), tokens_b.astype(np.float64), strict=True):
        (front_a, back_a), (front_b, back_b) = _pooled(a, vector), _pooled(b, vector)
        foreground.append(_cosine(front_a, front_b))
        background.append(_cosine(back_a, back_b))
    grown = [math.exp(gamma * (f - b)) for f, b in zip(foreground, background, strict=True)]
    return foreground, background, [len(grown) * g / sum(grown) for g in grown]


def pair_weights(
    quality: Sequence[float], gamma: float, keep: float, clip: tuple[float, float] | None
) -> list[float]:
    """Weights, one after another: the best share is kept, then exponentials, bounds, and a mean of one."""
    best = sorted(quality, reverse=True)[: max(1, round(keep * len(quality)))]
    grown = [math.exp(gamma * q) if q >= best[-1] else 0.0 for q in quality]
    if clip is not None:
        kept = [g for g in grown if g > 0]
        mean = sum(kept) / len(kept)
        grown = [min(max(g / mean, clip[0]), clip[1]) if g > 0 else 0.0 for g in grown]
    return [len(grown) * g / sum(grown) for g in grown]


def _pooled(tokens: np.ndarray, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = [float(token @ vector) for token in tokens]
    mask = [(s - min(scores)) / (max(scores) - min(scores) + 1e-7) for s in scores]
    front, back = np.zeros(tokens.shape[1]), np.zeros(tokens.shape[1])
    for m, token in zip(mask, tokens, strict=True):
        front += m / (sum(mask) + 1e-7) * token
        back += (1 - m) / (sum(1 - n for n in mask) + 1e-7) * token
    return front, back


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def average_precision(
    truth: list[dict[str, Any]], found: list[dict[str, Any]], images: list[int], overlap: float
) -> float:
    """COCO's average precision at one overlap, without crowds: mean over categories and over 101 recalls."""
    values = []
    for category in {row["category_id"] for row in truth if row["image_id"] in images}:
        objects = [row for row in truth if row["category_id"] == category and row["image_id"] in images]
        guesses = sorted((g for g in found if g["category_id"] == category), key=lambda g: -g["score"])
        taken: list[int] = []
        hits = []
        for guess in guesses:
            best, chosen = overlap, None
            for n, row in enumerate(objects):
                shared = _shared(row["bbox"], guess["bbox"])
                if n not in taken and row["image_id"] == guess["image_id"] and shared >= best:
                    best, chosen = shared, n
            hits.append(chosen is not None)
            taken += [] if chosen is None else [chosen]
        precisions = []
        for recall in range(101):
            reached = [
                sum(hits[:k]) / k for k in range(1, len(hits) + 1) if 100 * sum(hits[:k]) >= recall * len(objects)
            ]
            precisions.append(max(reached, default=0.0))
        values.append(sum(precisions) / 101)
    return sum(values) / len(values)


def _shared(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes: left, top, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)
