"""kNN against loops, the probe against scikit-learn, and no leak from the test images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Painted
from genview.errors import UserError
from genview.evaluation import Features, Knn, Linear, Reading, evaluate, extract, knn_accuracy, split
from genview.evaluation.linear import accuracy, fitted


def blobs(count: int, spread: float, seed: int, classes: int = 3, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    y = torch.arange(count) % classes
    return Features(centres[y] + spread * torch.randn(count, width, generator=generator), y)


def knn_by_loops(train: Features, test: Features, k: int, temperature: float) -> float:
    right = 0
    for x, y in zip(test.x.tolist(), test.y.tolist(), strict=True):
        found = []
        for bank, label in zip(train.x.tolist(), train.y.tolist(), strict=True):
            dot = sum(p * q for p, q in zip(x, bank, strict=True))
            found.append((dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in bank)), label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(found, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        right += max(votes, key=lambda label: votes[label]) == y
    return right / len(test.y)


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_against_loops(k: int, temperature: float) -> None:
    train, test = blobs(60, 1.5, 1), blobs(40, 1.5, 2)
    expected = knn_by_loops(train, test, k, temperature)
    assert 0.34 < expected < 1, "a task on which mistakes show"
    assert knn_accuracy(train, test, k=k, temperature=temperature) == pytest.approx(expected)
    assert knn_accuracy(train, test, k=k, temperature=temperature, chunk=7) == pytest.approx(expected)


def test_a_k_above_the_number_of_training_images_is_not_claimed() -> None:
    train, test = blobs(30, 1.0, 1), blobs(20, 1.0, 2)
    rows = dict(Knn(k=(5, 30, 200)).run(train, test, seed=0))
    assert set(rows) == {"knn/top1@k=5", "knn/top1@k=30"}
    assert dict(Knn(k=(200, 31)).run(train, test, seed=0)) == {"knn/top1@k=30": rows["knn/top1@k=30"]}
    assert knn_accuracy(train, test, k=31) == rows["knn/top1@k=30"]


def test_knn_at_a_temperature_that_overflows() -> None:
    """exp(1 / 0.001) is infinite in float32; the nearest image still wins."""
    train = Features(torch.tensor([[0.9, 0.1], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 2]))
    assert knn_accuracy(train, Features(torch.tensor([[1.0, 0.0]]), torch.tensor([2])), k=3, temperature=1e-3) == 1.0


def test_near_neighbours_count_more_than_many_far_ones() -> None:
    """One neighbour at similarity 1 against two at 0.6: exp(1/0.07) > 2 exp(0.6/0.07); without weights it loses."""
    train = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert knn_accuracy(train, test, k=3, temperature=0.07) == 1.0
    assert knn_accuracy(train, test, k=3, temperature=1e6) == 0.0


def test_logistic_regression_against_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    train, l2 = blobs(120, 1.5, 1), 1e-2
    ours = fitted(train, 3, l2, iterations=500)
    theirs = LogisticRegression(C=1 / (l2 * 120), tol=1e-8, max_iter=2000).fit(train.x.numpy(), train.y.numpy())
    assert np.allclose(ours[:-1].numpy().T, theirs.coef_, atol=2e-3)
    test = blobs(90, 1.5, 2)
    assert accuracy(ours, test) == pytest.approx(theirs.score(test.x.numpy(), test.y.numpy()), abs=0.012)


def test_the_probe_does_not_learn_from_test_labels() -> None:
    train = blobs(60, 1.0, 1)
    chance = torch.Generator().manual_seed(0)
    test = Features(blobs(600, 1.0, 2).x, torch.randint(0, 3, (600,), generator=chance))
    for evaluation in (Linear(), Knn(k=(5,))):
        ((_, value),) = evaluation.run(train, test, seed=0)
        assert value == pytest.approx(1 / 3, abs=0.08)


def test_the_strength_is_chosen_without_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test part is, the same fits are made: four on 9/10 of the training images, one on all of them."""
    train, fits = blobs(90, 3.0, 1), list[tuple[int, float]]()

    def watched(part: Features, classes: int, l2: float, iterations: int) -> Tensor:
        fits.append((len(part.y), l2))
        return fitted(part, classes, l2, iterations)

    monkeypatch.setattr("genview.evaluation.linear.fitted", watched)
    test, strengths = blobs(50, 3.0, 3), (1e-5, 1e-3, 1e-1, 10.0)
    for own in (test, Features(test.x.flip(0) * 7, test.y), Features(test.x, (test.y + 1) % 3)):
        list(Linear(l2=strengths).run(train, own, seed=0))
    assert fits[:4] == [(81, l2) for l2 in strengths]
    assert fits[4][0] == 90
    assert fits[5:] == fits[:5] * 2


def test_the_strength_is_the_best_on_the_held_out_part() -> None:
    """With noise in 60 features for 45 images a strong penalty is better; the choice must find that."""
    train, test = (blobs(n, 4.0, seed, classes=3, width=60) for n, seed in ((45, 1), (900, 2)))
    chosen = Linear(l2=(1e-6, 1.0), held=0.3)._best(train, 3, seed=0)
    worth = {l2: accuracy(fitted(train, 3, l2, 200), test) for l2 in (1e-6, 1.0)}
    assert worth[1.0] > worth[1e-6] + 0.01
    assert chosen == 1.0


def test_splits_keep_the_classes_and_do_not_overlap() -> None:
    first, second = split(Painted(50, kinds=3), 0.2, seed=0)
    keys = [{s.key(i) for i in range(len(s))} for s in (first, second)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 50
    assert sorted(second.label(i) or 0 for i in range(len(second))) == [0] * 3 + [1] * 3 + [2] * 3
    assert [second.key(i) for i in range(9)] == [split(Painted(50), 0.2, seed=0)[1].key(i) for i in range(9)]


class MeanColour(nn.Module):
    """A backbone whose features are the mean colours; notes the mode it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []
        self.frozen = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images.mean(dim=(2, 3))


def test_features_come_in_order_in_eval_mode_and_without_unreadable_images() -> None:
    backbone, bad = MeanColour().train(), []
    backbone.frozen.eval()
    source = Painted(10, broken=(3,))
    reading = Reading(16, batch=4, unreadable=lambda key, reason: bad.append((key, reason)))
    features = extract(backbone, source, reading)
    assert features.y.tolist() == [i % 3 for i in range(10) if i != 3]
    expected = [np.asarray(source.image(i).resize((16, 16), 3), dtype=float).mean(axis=(0, 1)) / 255 for i in (0, 9)]
    assert np.allclose(features.x[[0, -1]].numpy(), expected, atol=1e-3)
    assert backbone.modes == [False] * 3
    assert (backbone.training, backbone.frozen.training) == (True, False)
    assert bad == [("colour0/0003.png", "made so")]


def test_images_without_labels_cannot_be_evaluated_on() -> None:
    source = Painted(4)
    source.classes = ()
    with pytest.raises(UserError, match="Evaluation needs a label"):
        extract(MeanColour(), source, Reading(16))
    with pytest.raises(UserError, match="Evaluation needs a label"):
        split(source, 0.2, seed=0)


def test_one_image_without_a_label_is_no_image_of_class_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Painted(4)
    monkeypatch.setattr(source, "label", lambda i: None if i == 2 else i % 2)
    with pytest.raises(UserError, match="a label for every image"):
        extract(MeanColour(), source, Reading(16))


def test_no_readable_image_is_an_error() -> None:
    with pytest.raises(UserError, match="None of the images"):
        extract(MeanColour(), Painted(2, broken=(0, 1)), Reading(16, unreadable=lambda _key, _reason: None))


def test_evaluating_a_backbone_that_sees_the_class() -> None:
    train, test = split(Painted(60), 0.3, seed=0)
    rows = dict(evaluate(MeanColour(), train, test, (Knn(k=(5,)), Linear()), Reading(16)))
    assert rows == {"knn/top1@k=5": 1.0, "linear/top1": 1.0}
