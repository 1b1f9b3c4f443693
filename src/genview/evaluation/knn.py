"""k-nearest-neighbour on frozen features, weighted as by Wu et al. (Instance Discrimination, CVPR 2018, section 3.4).

The bank of training images and the test images are both taken in chunks, so that the memory needed is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features, Reading, Tell
from genview.evaluation.options import COUNT, POSITIVE, want, want_some, want_text
from genview.evaluation.subject import Subject
from genview.images.source import silent
from genview.training.duration import bytes_of

BUDGET = 500_000_000
"""Bytes for chunks, where nothing else is said."""
PAIR = 20
"""Bytes for one similarity while neighbours are sought: itself, its key of 8 bytes, and what is made on the way."""
VOTERS = 2**24
"""Ballots held at a time."""


@dataclass(frozen=True)
class Knn:
    """Top-1 accuracy with each k, by weighted vote, and by plain majority where `plain`.

    A neighbour at cosine similarity s votes with exp(s / `temperature`), or in a plain vote with 1.
    `budget` bounds the memory for chunks of features and their similarities, beside the features themselves.
    A k above the number of training images is left out, as its name would promise what was not measured; where none
    remains, one k is taken: all of the training images.

    Raises:
        UserError: there is no k, or one below 1, `temperature` is not above 0, or `budget` is no size.
    """

    kind: Literal["knn"] = "knn"
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    plain: bool = True
    budget: str = "1 GB"
    protocol: ClassVar[str] = "knn-1"

    def __post_init__(self) -> None:
        want_some(self.kind, self, "k")
        want(self.kind, self, COUNT, "k")
        want(self.kind, self, POSITIVE, "temperature")
        want_text(self.kind, self, bytes_of, "budget")

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('knn/top1@k=K', share of test images that are right), then ('knn/plain-top1@k=K', …)."""
        yield from self.on(*subject.features, subject.reading)

    def on(self, train: Features, test: Features, reading: Reading) -> Iterator[tuple[str, float]]:
        """Yield the same from features."""
        known = [k for k in self.k if k <= len(train.y)] or [len(train.y)]
        found = neighbours(
            train,
            test,
            max(known),
            budget=bytes_of(self.budget),
            device=reading.device,
            tell=reading.tell or silent,
        )
        for k in known:
            yield f"knn/top1@k={k}", found.nearest(k).accuracy(test.y, self.temperature)
        for k in known if self.plain else ():
            yield f"knn/plain-top1@k={k}", found.nearest(k).accuracy(test.y, None)


@dataclass(frozen=True)
class Neighbours:
    """Cosine similarities N×k of test images to their neighbours, the nearest first, and the neighbours' labels N×k.

    Of equally similar images the one that comes first in the training images is the nearer.
    """

    similarity: Tensor
    labels: Tensor

    def nearest(self, k: int) -> Neighbours:
        """The first k of them."""
        return Neighbours(self.similarity[:, :k], self.labels[:, :k])

    def accuracy(self, y: Tensor, temperature: float | None) -> float:
        """Share of the labels `y` that win the vote of the neighbours; None: each has one vote.

        Of labels with equally many votes the lowest wins.
        """
        classes = int(self.labels.max()) + 1
        rows = max(1, VOTERS // classes)
        parts = zip(self.similarity.split(rows), self.labels.split(rows), y.split(rows), strict=True)
        return sum(int((_winners(s, of, classes, temperature) == own).sum()) for s, of, own in parts) / len(y)


def knn_accuracy(train: Features, test: Features, *, k: int, temperature: float | None = 0.07) -> float:
    """Share of test images whose label wins the vote of the k nearest training images; all vote where k is larger."""
    return neighbours(train, test, k).accuracy(test.y, temperature)


def neighbours(
    train: Features, test: Features, k: int, *, budget: int = BUDGET, device: str = "cpu", tell: Tell = silent
) -> Neighbours:
    """Find the k training images that are most similar to each test image; all of them where k is larger.

    Each chunk of the bank goes to the device once; of every test image its best keys so far are kept.

    Args:
        train: the bank, float32 or float16; products are of float32.
        test: of whom the neighbours are sought.
        k: how many.
        budget: bytes for chunks of both and their similarities; the kept keys, 8 bytes each, come on top.
        device: where similarities are computed.
        tell: is told how much of the bank is done.
    """
    k, total = min(k, len(train.y)), len(train.y)
    rows, asked = chunks(budget, train.x.shape[1])
    # Room for all of them at once: small tensors that stay between large ones that go would break up the heap.
    keys = torch.full((len(test.y), k), torch.iinfo(torch.int64).min)
    for first in range(0, total, rows):
        bank = _normal(train.x[first : first + rows], device)
        for n, part in enumerate(test.x.split(asked)):
            own = keys[n * asked : n * asked + len(part)]
            both = torch.cat([own.to(device), _best(part, bank, first, k)], dim=1)
            own.copy_(both.topk(k, dim=1).values)
        del bank  # before the next one is made
        tell("neighbours", min(first + rows, total), total, "")
    return Neighbours(_similarity(keys), train.y[_index(keys)])


def chunks(budget: int, width: int) -> tuple[int, int]:
    """Return how many rows of the bank and of the test images fit into a budget of bytes: half of it for the bank.

    A row of features takes four bytes a value twice, as it is and normalised.
    """
    rows = max(1, budget // 2 // (8 * width))
    return rows, max(1, budget // 2 // (8 * width + PAIR * rows))


def _normal(x: Tensor, device: str | torch.device) -> Tensor:
    return F.normalize(x.to(device).float(), dim=1)


def _best(part: Tensor, bank: Tensor, first: int, k: int) -> Tensor:
    """Keys of the k rows of a bank, or of all of them, that are most similar to each row of `part`."""
    keys = _keys(_normal(part, bank.device) @ bank.T, first)
    return keys.topk(min(k, len(bank)), dim=1).values


def _keys(similarity: Tensor, first: int) -> Tensor:
    """Return numbers that sort as similarities B×N do, which are used up; where those are equal, by the lower index.

    The upper half has the bits of the similarity, those of negative ones turned over; the lower half the index from
    the end, counted from `first` for the first column. So no two keys are equal, and no cut in chunks shows.
    """
    bits = similarity.add_(0.0).view(torch.int32)  # -0.0 would sort below 0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    index = torch.arange(first, first + similarity.shape[1], device=similarity.device)
    return keys.bitwise_left_shift_(32).bitwise_or_(0xFFFFFFFF - index)


def _index(keys: Tensor) -> Tensor:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _similarity(keys: Tensor) -> Tensor:
    sorting = (keys >> 32).int()
    return (sorting ^ ((sorting >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _winners(similarity: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Winner of the vote: similarities B×k, the largest first, and labels B×k → labels B."""
    if temperature is None:
        votes = torch.ones_like(similarity)
    else:
        # The nearest one's vote counts as 1: the winner is the same, and a low temperature does not overflow.
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(labels), classes).scatter_add_(1, labels, votes).argmax(dim=1)
