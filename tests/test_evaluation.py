"""kNN against loops, the probe against scikit-learn, and no leak from the test images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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
)
from genview.evaluation.linear import accuracy, fitted
from genview.store import read_results, want_results


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
    rows = dict(Knn(k=(5, 30, 200)).run(known(train, test)))
    assert set(rows) == {"knn/top1@k=5", "knn/top1@k=30"}
    assert dict(Knn(k=(200, 31)).run(known(train, test))) == {"knn/top1@k=30": rows["knn/top1@k=30"]}
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
        ((_, value),) = evaluation.run(known(train, test))
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
        list(Linear(l2=strengths).run(known(train, own)))
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
    results = judge(subject, (Knn(k=(5,)), Linear()), tmp_path, "last")
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
    evaluations = (Knn(k=(5,)), Killed(), Linear())
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
    knn, other, linear = Knn(k=(5,)), Knn(k=(7,)), Linear()
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
