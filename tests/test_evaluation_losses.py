"""Scores and losses of evaluations that train, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import Painted
from genview.evaluation import Reading
from genview.evaluation.augmented import Example
from genview.evaluation.classifier import Classifier
from genview.evaluation.probe import Heads
from genview.evaluation.scoring import middle, top
from genview.images import square
from subjects import FINETUNE, SIZE, Relabelled, backbone


def test_the_share_of_right_guesses_counted_by_hand() -> None:
    """Seven classes, four images; the label is the first guess, the second, the sixth, and lost among NaNs."""
    rows: list[list[float]] = [[9, 1, 2, 3, 4, 5, 6], [9, 8, 2, 3, 4, 5, 6], [9, 8, 2, 7, 6, 5, 4], [math.nan] * 7]
    source = Relabelled(Painted(4), [0, 1, 2, 3])
    source.classes = tuple("abcdefg")
    one = top(lambda _: torch.tensor(rows), source, FINETUNE, Reading(SIZE), "")
    assert [float(share) for share in one] == [0.25, 0.5]
    two = top(lambda _: torch.tensor([[row, row[::-1]] for row in rows]), source, FINETUNE, Reading(SIZE), "")
    assert two[0].tolist() == [0.25, 0.0]


def test_images_are_scored_in_the_middle_of_a_larger_one() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 3)

    source = Painted(2, size=40)
    top(predict, source, replace(FINETUNE, crop=0.8), Reading(SIZE), "")
    whole = torch.from_numpy(np.array(square(source.image(0), 20))).permute(2, 0, 1)
    assert torch.equal((seen[0][0] * 255).round(), whole[:, 2:18, 2:18].float())
    assert middle(torch.arange(9).view(1, 1, 3, 3), 1).item() == 4


def test_the_loss_of_mixed_images_by_hand() -> None:
    model = Classifier(backbone(), 3, seed=0, smoothing=0.1, mixup=0.8).eval()
    images, labels = torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])
    share = model._share(5)
    assert 0 < share < 1
    assert share != model._share(6)
    logs = F.log_softmax(model.logits(share * images + (1 - share) * images.flip(0)), dim=1)
    targets = torch.full((4, 3), 0.1 / 3)
    for i, j in enumerate((3, 2, 1, 0)):
        targets[i, labels[i]] += 0.9 * share
        targets[i, labels[j]] += 0.9 * (1 - share)
    (loss,) = model(Example(images, labels, torch.arange(4)), 5)
    assert loss.item() == pytest.approx(-(targets * logs).sum(dim=1).mean().item(), abs=1e-6)


def test_each_head_learns_from_its_own_images_only() -> None:
    """Two rates, four images of which the second is held out: losses by loops, and gradients of one image's."""
    heads = Heads(backbone(), 3, (0.1, 1.0), torch.tensor([False, True, False, False]), seed=0).train()
    images, labels, rows = torch.rand(3, 3, SIZE, SIZE), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    losses = heads(Example(images, labels, rows), 0).detach()
    features = heads.backbone(images)
    each = [
        [F.cross_entropy(head(x), y).item() for x, y in zip(features, labels, strict=True)] for head in heads.trained
    ]
    own = [fmean([row[0], row[2]]) for row in each[:2]] + [fmean(row) for row in each[2:]]
    assert losses.tolist() == pytest.approx(own, abs=1e-5)
    alone_aside = heads(Example(images[1:2], labels[1:2], rows[1:2]), 0)
    gradients = torch.autograd.grad(alone_aside.sum(), list(heads.trained.parameters())[::2])
    assert [bool(gradient.any()) for gradient in gradients] == [False, False, True, True]
