"""Weighted k-nearest-neighbour on frozen features (Wu et al., "Instance Discrimination", CVPR 2018, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features

CHUNK = 1024


@dataclass(frozen=True)
class Knn:
    """Top-1 accuracy with each k; a k above the number of training images means all of them."""

    kind: Literal["knn"] = "knn"
    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07

    def run(self, train: Features, test: Features, seed: int) -> Iterator[tuple[str, float]]:  # noqa: ARG002
        """Yield ('knn/top1@k=K', share of test images that are right)."""
        for k in self.k:
            yield f"knn/top1@k={k}", knn_accuracy(train, test, k=k, temperature=self.temperature)


def knn_accuracy(train: Features, test: Features, *, k: int, temperature: float = 0.07, chunk: int = CHUNK) -> float:
    """Share of test images whose label wins the vote of the k nearest training images.

    A neighbour at cosine similarity s votes for its label with exp(s / temperature). Memory is bounded by `chunk`
    test images times all training images.
    """
    bank = F.normalize(train.x, dim=1)
    k = min(k, len(bank))
    right = 0
    for x, y in zip(test.x.split(chunk), test.y.split(chunk), strict=True):
        similarity, nearest = (F.normalize(x, dim=1) @ bank.T).topk(k, dim=1)
        right += int((_vote(similarity, train.y[nearest], temperature) == y).sum())
    return right / len(test.y)


def _vote(similarity: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Winner of the vote: similarities and labels B×k → labels B."""
    ballots = torch.zeros(len(labels), int(labels.max()) + 1)
    return ballots.scatter_add_(1, labels, (similarity / temperature).exp()).argmax(dim=1)
