"""Weighted k-nearest-neighbour on frozen features (Wu et al., "Instance Discrimination", CVPR 2018, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features
from genview.evaluation.subject import Subject

SIMILARITIES = 2**26
"""Held in memory at a time (256 MB in float32)."""


@dataclass(frozen=True)
class Knn:
    """Top-1 accuracy with each k.

    A k above the number of training images is left out, as its name would promise what was not measured; where none
    remains, one k is taken: all of the training images.
    """

    kind: Literal["knn"] = "knn"
    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07

    protocol: ClassVar[str] = "knn-1"

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('knn/top1@k=K', share of test images that are right)."""
        train, test = subject.features
        for k in [k for k in self.k if k <= len(train.y)] or [len(train.y)]:
            yield f"knn/top1@k={k}", knn_accuracy(train, test, k=k, temperature=self.temperature)


def knn_accuracy(
    train: Features, test: Features, *, k: int, temperature: float = 0.07, chunk: int | None = None
) -> float:
    """Share of test images whose label wins the vote of the k nearest training images; all vote where k is larger.

    A neighbour at cosine similarity s votes for its label with exp(s / temperature). Test images are taken `chunk`
    at a time, by default as many as keep the similarities within 256 MB.
    """
    bank = F.normalize(train.x, dim=1)
    k = min(k, len(bank))
    chunk = chunk or max(1, SIMILARITIES // len(bank))
    right = 0
    for x, y in zip(test.x.split(chunk), test.y.split(chunk), strict=True):
        similarity, nearest = (F.normalize(x, dim=1) @ bank.T).topk(k, dim=1)
        right += int((_vote(similarity, train.y[nearest], temperature) == y).sum())
    return right / len(test.y)


def _vote(similarity: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Winner of the vote: similarities B×k, the largest first, and labels B×k → labels B."""
    ballots = torch.zeros(len(labels), int(labels.max()) + 1)
    # The nearest one's vote counts as 1: the winner is the same, and a low temperature does not overflow.
    votes = ((similarity - similarity[:, :1]) / temperature).exp()
    return ballots.scatter_add_(1, labels, votes).argmax(dim=1)
