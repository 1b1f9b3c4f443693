"""Splits that do not overlap, features in order, and results that are whole, kept, and shown as asked for."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

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
from genview.evaluation.features import room
from genview.evaluation.knn import neighbours
from genview.evaluation.rows import Rows
from genview.store import read_results, want_results
from known_features import MeanColour, blobs, known

QUICK = Linear(l2=(1e-3,), iterations=10, rates=())


def test_splits_keep_the_classes_and_do_not_overlap() -> None:
    first, second = split(Painted(50, kinds=3), 0.2, seed=0)
    keys = [{s.key(i) for i in range(len(s))} for s in (first, second)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 50
    assert sorted(second.label(i) or 0 for i in range(len(second))) == [0] * 3 + [1] * 3 + [2] * 3
    assert [second.key(i) for i in range(9)] == [split(Painted(50), 0.2, seed=0)[1].key(i) for i in range(9)]


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


class Diverged(MeanColour):
    """Blows up on the images of one colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = super().forward(images)
        return torch.where(found[:, 1:2] > found[:, :1], found * float("inf"), found)


def test_features_that_are_not_finite_name_the_image_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"features of 'colour1/0001\.png' are not finite.*rate"):
        extract(Diverged(), Painted(6), Reading(16, batch=4))


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
