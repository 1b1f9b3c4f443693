"""kNN against loops, the probe against scikit-learn, and no leak from the test images."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Painted
from genview.errors import UserError
from genview.evaluation import (
    Features,
    Knn,
    Linear,
    Reading,
    Subject,
    extract,
    judge,
    knn_accuracy,
    name_of,
    split,
    stratified,
)
from genview.evaluation.features import room
from genview.evaluation.knn import PAIR, chunks, neighbours
from genview.evaluation.linear import accuracy, fitted
from genview.evaluation.rows import Rows
from genview.evaluation.sgd import Choice, Course
from genview.store import read_results, want_results

QUICK = Linear(l2=(1e-3,), iterations=10, rates=())


def blobs(count: int, spread: float, seed: int, classes: int = 3, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    y = torch.arange(count) % classes
    return Features(centres[y] + spread * torch.randn(count, width, generator=generator), y)


def known(train: Features, test: Features, seed: int = 0) -> Subject:
    """A subject whose features are these."""
    nothing = Painted(0)
    subject = Subject(lambda: MeanColour(), nothing, nothing, Reading(16), seed, Path())  # type: ignore[arg-type, return-value]
    subject.__dict__["features"] = (train, test)
    return subject


def plain(features: Features) -> Rows:
    """Rows as they are."""
    width = features.x.shape[1]
    return Rows(features, torch.arange(len(features.y)), torch.zeros(width), torch.ones(width))


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
    assert knn_accuracy(Features(train.x.half(), train.y), test, k=k, temperature=temperature) == pytest.approx(
        expected, abs=1 / 40 + 1e-9
    )


def majority_by_loops(train: Features, test: Features, k: int) -> float:
    """For exact similarities: the nearest first, of equal ones the earlier; of equal votes the lower label."""
    right = 0
    for x, y in zip(test.x.tolist(), test.y.tolist(), strict=True):
        dots = [sum(p * q for p, q in zip(x, bank, strict=True)) for bank in train.x.tolist()]
        order = sorted(range(len(dots)), key=lambda i: (-dots[i], i))[:k]
        votes = [train.y[i].item() for i in order]
        right += min(range(3), key=lambda label: (-votes.count(label), label)) == y
    return right / len(test.y)


@pytest.mark.parametrize("k", [1, 4, 60])
def test_ties_are_broken_the_same_way_however_the_bank_is_cut(k: int) -> None:
    """Rows of ±1/2 in four dimensions: similarities are multiples of 1/2, exact, and mostly equal."""
    chance = torch.Generator().manual_seed(3)
    train, test = (
        Features(torch.randint(0, 2, (n, 4), generator=chance) - 0.5, torch.randint(0, 3, (n,), generator=chance))
        for n in (60, 40)
    )
    expected = majority_by_loops(train, test, k)
    for budget in (300, 2000, 10**9):
        found = neighbours(train, test, k, budget=budget)
        assert found.similarity.shape == found.labels.shape == (40, k)
        assert found.accuracy(test.y, None) == pytest.approx(expected)
        assert torch.equal(found.similarity, neighbours(train, test, k).similarity)
        assert torch.equal(found.labels, neighbours(train, test, k).labels)


@pytest.mark.parametrize("budget", [500, 4000])
def test_chunks_of_bank_and_queries_give_what_the_whole_gives(budget: int) -> None:
    train, test = blobs(70, 1.5, 1), blobs(30, 1.5, 2)
    whole, told = neighbours(train, test, 9), list[int]()
    cut = neighbours(train, test, 9, budget=budget, tell=lambda _what, done, _total, _note: told.append(done))
    assert torch.allclose(cut.similarity, whole.similarity, atol=1e-6)
    assert torch.equal(cut.labels, whole.labels)
    assert told[-1] == 70
    assert len(told) > 1
    everyone = neighbours(train, test, 99).similarity
    assert everyone.shape == (30, 70)
    assert bool((everyone[:, -1] < 0).all()), "the bits of negative numbers sort the other way"
    assert bool((everyone[:, :-1] >= everyone[:, 1:]).all())


@pytest.mark.parametrize(("width", "budget"), [(2048, 10**9), (384, 10**8), (8, 10**6)])
def test_chunks_keep_the_budget_and_use_most_of_it(width: int, budget: int) -> None:
    rows, asked = chunks(budget, width)
    assert 0.9 * budget < 8 * width * (rows + asked) + PAIR * rows * asked <= budget


def test_a_plain_vote_and_a_weighted_one_are_both_told() -> None:
    train = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    rows = dict(Knn(k=(1, 3)).run(known(train, test)))
    assert rows == {"knn/top1@k=1": 1, "knn/top1@k=3": 1, "knn/plain-top1@k=1": 1, "knn/plain-top1@k=3": 0}
    with pytest.raises(UserError, match="is no size"):
        list(Knn(budget="much").run(known(train, test)))


def test_a_k_above_the_number_of_training_images_is_not_claimed() -> None:
    train, test = blobs(30, 1.0, 1), blobs(20, 1.0, 2)
    rows = dict(Knn(k=(5, 30, 200), plain=False).run(known(train, test)))
    assert set(rows) == {"knn/top1@k=5", "knn/top1@k=30"}
    assert dict(Knn(k=(200, 31), plain=False).run(known(train, test))) == {"knn/top1@k=30": rows["knn/top1@k=30"]}
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


def test_many_features_go_to_a_file_and_give_the_same_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert room(10, 3, most=120).dtype == torch.float32
    kept = room(60, 6, most=1439)
    assert kept.dtype == torch.float16
    assert kept.shape == (60, 6)
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left whatever happens"
    train, test = blobs(60, 1.5, 1), blobs(40, 1.5, 2)
    kept[:] = train.x
    filed = Features(kept, train.y)
    assert neighbours(filed, test, 5).similarity.dtype == torch.float32
    assert knn_accuracy(filed, test, k=5) == pytest.approx(knn_accuracy(train, test, k=5), abs=0.026)
    known_rows, filed_rows = (Rows.standardised(part) for part in (train, filed))
    assert torch.allclose(known_rows.part(slice(5))[0], filed_rows.part(slice(5))[0], atol=5e-3)


def test_a_full_disk_is_met_before_the_first_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="is full"):
        room(60, 6, most=0)


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


def seeing(folder: Path, calls: list[int]) -> Subject:
    """Painted images of three colours, and a backbone that sees them; notes whenever one is loaded."""

    def load() -> MeanColour:
        calls.append(1)
        return MeanColour()

    train, test = split(Painted(60), 0.3, seed=0)
    return Subject(load, train, test, Reading(16), seed=0, folder=folder)  # type: ignore[arg-type]


def test_evaluating_a_backbone_that_sees_the_class(tmp_path: Path) -> None:
    calls: list[int] = []
    subject = seeing(tmp_path, calls)
    results = judge(subject, (Knn(k=(5,), plain=False), QUICK), tmp_path, "last")
    assert [result.measures for result in results] == [(("knn/top1@k=5", 1.0),), (("linear/top1", 1.0),)]
    assert [result.protocol for result in results] == [Knn.protocol, Linear.protocol]
    assert {(r.backbone, r.train, r.test, r.size, r.seed, r.device) for r in results} == {
        ("last", 42, 18, 16, 0, "cpu")
    }
    assert results[0].settings["k"] == [5]
    assert len(calls) == 1, "features are extracted once for both"


@dataclass(frozen=True)
class Killed:
    """Yields a measure and is killed, as long as it is told to."""

    kind: str = "killed"
    protocol: ClassVar[str] = "killed-1"
    alive: ClassVar[list[bool]] = [False]
    folders: ClassVar[list[Path]] = []

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        self.folders.append(subject.folder)
        yield "killed/a", 0.25
        if not self.alive[0]:
            raise KeyboardInterrupt
        yield "killed/b", 0.75


def test_a_killed_evaluation_leaves_no_part_of_a_result_and_redoes_only_what_is_missing(tmp_path: Path) -> None:
    evaluations = (Knn(k=(5,), plain=False), Killed(), QUICK)
    with pytest.raises(KeyboardInterrupt):
        judge(seeing(tmp_path, []), evaluations, tmp_path, "last")
    assert [path.stem for path in tmp_path.glob("*.json")] == [name_of(evaluations[0])]
    first = (tmp_path / f"{name_of(evaluations[0])}.json").stat().st_mtime_ns
    Killed.alive[0] = True
    results = judge(seeing(tmp_path, []), evaluations, tmp_path, "last")
    assert [name for result in results for name, _ in result.measures] == [
        "knn/top1@k=5",
        "killed/a",
        "killed/b",
        "linear/top1",
    ]
    assert (tmp_path / f"{name_of(evaluations[0])}.json").stat().st_mtime_ns == first
    assert set(Killed.folders) == {tmp_path / name_of(Killed())}, "what it needs to continue is where it was"
    calls: list[int] = []
    assert judge(seeing(tmp_path, calls), evaluations, tmp_path, "last") == results
    assert not calls, "nothing is loaded where nothing is left to do"


def test_results_are_shown_as_they_were_asked_for(tmp_path: Path) -> None:
    knn, other, linear = Knn(k=(5,)), Knn(k=(7,), plain=False), Linear()
    assert read_results(tmp_path, "last") == []
    judge(seeing(tmp_path, []), (knn, other), tmp_path / "last", "last")
    want_results(tmp_path, [name_of(linear), name_of(other)])
    assert [dict(r.measures) for r in read_results(tmp_path, "last")] == [{"knn/top1@k=7": 1.0}]
    assert read_results(tmp_path, "best") == []
    (tmp_path / "last" / f"{name_of(other)}.json").write_text('{"protocol": "knn-1"}')
    with pytest.raises(UserError, match=r"is damaged.*Delete it and evaluate again"):
        read_results(tmp_path, "last")


def test_another_version_of_a_protocol_is_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(Knn())
    assert name_of(Knn(temperature=0.1)) != before
    assert before.startswith("knn-")
    monkeypatch.setattr(Knn, "protocol", "knn-99")
    assert name_of(Knn()) != before


def test_the_evaluation_of_the_documentation_is_one() -> None:
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    scope: dict[str, Any] = {"__name__": __name__}  # a dataclass looks for its module
    exec(text.partition("```python\n")[2].partition("```")[0], scope)
    train, test = blobs(90, 1.0, 1), blobs(60, 1.0, 2)
    found = dict(scope["NearestMean"]().run(known(train, test)))
    means = torch.stack([train.x[train.y == label].mean(dim=0) for label in range(3)])
    assert found == {"mean/top1": float((torch.cdist(test.x, means).argmin(dim=1) == test.y).double().mean())}
    assert 0.5 < found["mean/top1"] < 1
