"""Linear probes against scikit-learn and torch's own SGD, and nothing learned or chosen on the test images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from genview.evaluation import Features, Knn, Linear, stratified
from genview.evaluation.linear import accuracy, fitted
from genview.evaluation.rows import Rows
from genview.evaluation.sgd import Choice, Course
from known_features import blobs, known


def plain(features: Features) -> Rows:
    """Rows as they are."""
    width = features.x.shape[1]
    return Rows(features, torch.arange(len(features.y)), torch.zeros(width), torch.ones(width))


def test_logistic_regression_against_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    train, l2 = blobs(120, 1.5, 1), 1e-2
    ours = fitted(plain(train), 3, l2, iterations=100)
    theirs = LogisticRegression(C=1 / (l2 * 120), tol=1e-8, max_iter=2000).fit(train.x.numpy(), train.y.numpy())
    assert np.allclose(ours[:-1].numpy().T, theirs.coef_, atol=2e-3)
    test = blobs(90, 1.5, 2)
    assert accuracy(plain(test), ours) == pytest.approx(theirs.score(test.x.numpy(), test.y.numpy()), abs=0.012)


def test_the_probe_does_not_learn_from_test_labels() -> None:
    train = blobs(60, 1.0, 1)
    chance = torch.Generator().manual_seed(0)
    test = Features(blobs(600, 1.0, 2).x, torch.randint(0, 3, (600,), generator=chance))
    for evaluation in (Linear(l2=(1e-3,), iterations=20, epochs=5), Knn(k=(5,))):
        rows = dict(evaluation.run(known(train, test)))
        assert len(rows) == 2
        assert list(rows.values()) == pytest.approx([1 / 3] * 2, abs=0.08)


def test_the_strength_is_chosen_without_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test part is, the same fits are made: four on 9/10 of the training images, one on all of them."""
    train, fits = blobs(90, 3.0, 1), list[tuple[int, float]]()

    def watched(part: Rows, classes: int, l2: float, iterations: int) -> Tensor:
        fits.append((len(part), l2))
        return fitted(part, classes, l2, iterations)

    monkeypatch.setattr("genview.evaluation.linear.fitted", watched)
    test, strengths = blobs(50, 3.0, 3), (1e-5, 1e-3, 1e-1, 10.0)
    for own in (test, Features(test.x.flip(0) * 7, test.y), Features(test.x, (test.y + 1) % 3)):
        list(Linear(l2=strengths, iterations=8, rates=()).run(known(train, own)))
    assert fits[:4] == [(81, l2) for l2 in strengths]
    assert fits[4][0] == 90
    assert fits[5:] == fits[:5] * 2


def test_the_strength_is_the_best_on_the_held_out_part() -> None:
    """With noise in 60 features for 45 images a strong penalty is better; the choice must find that."""
    train, test = (blobs(n, 4.0, seed, classes=3, width=60) for n, seed in ((45, 1), (900, 2)))
    own, held = (plain(train).only(rows) for rows in stratified(train.y, 0.3, seed=0))
    worth = {l2: accuracy(plain(test), fitted(plain(train), 3, l2, 50)) for l2 in (1e-6, 1.0)}
    assert worth[1.0] > worth[1e-6] + 0.01
    assert Linear(l2=(1e-6, 1.0), iterations=50)._best(own, held, 3) == 1.0


def probe_by_autograd(rows: Rows, classes: int, choice: Choice, course: Course) -> Tensor:
    """One probe alone: torch's own SGD and cosine schedule, its own gradients."""
    weight = torch.zeros(len(rows.mean) + 1, classes, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=choice.rate, momentum=course.momentum)
    batches = list(course.batches(len(rows)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for places in batches:
        x, y = rows.part(places)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight, y) + choice.decay / 2 * weight[:-1].square().sum()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight.detach()


def test_a_grid_at_once_is_each_probe_alone() -> None:
    rows, course = Rows.standardised(blobs(53, 2.0, 1)), Course(epochs=3, batch=16, momentum=0.9, seed=4)
    grid = [Choice(rate, decay) for rate in (0.05, 0.7) for decay in (0.0, 0.3)]
    together = course.trained(rows, 3, grid)
    assert together.shape == (4, 7, 3)
    for weight, choice in zip(together, grid, strict=True):
        assert torch.allclose(weight, probe_by_autograd(rows, 3, choice, course), atol=1e-5)
    orders = {tuple(torch.cat(list(course.batches(53))[n : n + 4]).tolist()) for n in (0, 4, 8)}
    assert len(orders) == 3
    assert all(sorted(order) == list(range(53)) for order in orders)


def test_the_probe_of_the_grid_is_chosen_on_the_held_out_part() -> None:
    """The first of those that get most of the held-out part right, each trained alone; one that diverges never is."""
    rows = Rows.standardised(blobs(45, 4.0, 1, width=60))
    course = Course(epochs=20, batch=32, momentum=0.9, seed=0)
    own, held = (rows.only(index) for index in stratified(rows.features.y, 0.4, seed=0))
    settings = Linear(rates=(1e30, 0.03, 0.3), decays=(1.0, 0.1, 0.0))
    grid = [Choice(rate, decay) for rate in settings.rates for decay in settings.decays]
    alone = [accuracy(held, probe_by_autograd(own, 3, choice, course)) for choice in grid]
    assert alone[0] == 0.0
    assert len(set(alone)) > 2, "a task in which the choice matters"
    assert settings._choice(own, held, 3, course) == grid[alone.index(max(alone))]


def test_both_fits_of_a_linear_probe_agree() -> None:
    """The same model and loss: with the same decay and time enough, SGD ends where L-BFGS does."""
    rows = Rows.standardised(blobs(64, 1.5, 1))
    exact = fitted(rows, 3, 0.05, iterations=50)
    found = Course(epochs=300, batch=64, momentum=0.9, seed=0).trained(rows, 3, [Choice(0.5, 0.05)])[0]
    assert torch.allclose(found, exact, atol=2e-3)


def test_features_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(blobs(50, 1.0, 1).x * 3 + 7, blobs(50, 1.0, 1).y)
    whole = Rows.standardised(features)
    weight = fitted(whole, 3, 0.01, iterations=30)
    monkeypatch.setattr("genview.evaluation.rows.ROWS", 8)
    monkeypatch.setattr("genview.evaluation.linear.ROWS", 8)
    cut = Rows.standardised(features)
    assert torch.allclose(cut.mean, features.x.mean(dim=0), atol=1e-5)
    assert torch.allclose(cut.std, features.x.std(dim=0, correction=0), atol=1e-4)
    assert [len(y) for _, y in cut.parts()] == [8] * 6 + [2]
    assert torch.allclose(fitted(cut, 3, 0.01, iterations=30), weight, atol=1e-3)
    x, y = cut.only([3, 1]).part(slice(None))
    assert torch.allclose(x[:, :-1], ((features.x - cut.mean) / cut.std)[[3, 1]])
    assert x[:, -1].tolist() == [1, 1]
    assert y.tolist() == features.y[[3, 1]].tolist()
    assert accuracy(cut.only([]).of(features), weight) == accuracy(whole, weight)
