"""Evaluations that train, from start to end: what can and cannot be learned, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Painted
from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation import FineTune, Probe, Reading, SemiSupervised, judge
from genview.evaluation.semi import Labels
from genview.experiment.load import dump, parse
from genview.experiment.schema import Experiment
from genview.images import Subset
from subjects import ALL, FEW, FINETUNE, PROBE, SIZE, SMALL, Evaluations, Relabelled, subject


@pytest.mark.parametrize("evaluation", ALL, ids=lambda e: e.kind)
def test_colours_are_learned(evaluation: Evaluations, tmp_path: Path) -> None:
    found = dict(evaluation.run(subject(tmp_path)))
    name = "semi/top1@25%" if evaluation is FEW else f"{evaluation.kind}/top1"
    assert found[name] > 0.85
    assert next(iter(found)) == name


@pytest.mark.parametrize("evaluation", [FINETUNE, PROBE], ids=lambda e: e.kind)
def test_labels_that_say_nothing_are_not(evaluation: Evaluations, tmp_path: Path) -> None:
    painted = Painted(48, size=20)
    labels = [int(k) for k in torch.randperm(48, generator=torch.Generator().manual_seed(1)) % 3]
    quick = replace(evaluation, length="3 epochs")
    found = dict(quick.run(subject(tmp_path, Relabelled(painted, labels))))
    assert found[f"{evaluation.kind}/top1"] < 0.6


def test_the_choice_of_a_rate_does_not_see_the_test_images(tmp_path: Path) -> None:
    painted = Painted(96, size=20)
    turned = Relabelled(painted, [(i + 1) % 3 for i in range(96)])
    rows = [
        dict(PROBE.run(subject(tmp_path / name, test=Subset(source, range(48, 96)))))
        for name, source in (("right", painted), ("turned", turned))
    ]
    held = ["linear_augmented/held_top1@rate=1e-06", "linear_augmented/held_top1@rate=1"]
    assert rows[0][held[1]] > rows[0][held[0]]
    assert [rows[0][name] for name in held] == [rows[1][name] for name in held]
    assert rows[1]["linear_augmented/top1"] < 0.15, "the rate that learns was taken, though all it says is wrong here"


def test_a_rate_that_diverges_loses_and_does_not_stop_the_others(tmp_path: Path) -> None:
    found = dict(replace(PROBE, rates=(1.0, 3e38)).run(subject(tmp_path)))
    assert found["linear_augmented/top1"] > 0.85


@pytest.mark.parametrize(
    "evaluation",
    [replace(FINETUNE, optimizer="sgd", rate=3e38, warmup="0 epochs"), replace(PROBE, rates=(3e38,))],
    ids=lambda e: e.kind,
)
def test_a_loss_that_is_not_finite_stops_with_the_step(evaluation: Evaluations, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is not finite at step [23] of .*Lower the rates? of evaluation"):
        list(evaluation.run(subject(tmp_path)))


@pytest.mark.parametrize("evaluation", ALL, ids=lambda e: e.kind)
def test_a_class_without_an_image_is_refused(evaluation: Evaluations, tmp_path: Path) -> None:
    few = Subset(Painted(48), [i for i in range(48) if i % 3 != 1])
    with pytest.raises(UserError, match=r"1 of 3 classes have no image to train on \(the first: 'colour1'\)"):
        list(evaluation.run(subject(tmp_path, few)))
    with pytest.raises(UserError, match="test images have 2 classes and those to train on 3"):
        list(evaluation.run(subject(tmp_path, test=Painted(8, kinds=2))))


@pytest.mark.parametrize(
    ("evaluation", "changes", "message"),
    [
        (FINETUNE, {"crop": 1.5}, "crop and smallest_crop above 0 and at most 1"),
        (FINETUNE, {"batch": 0}, "batch of at least 1"),
        (PROBE, {"rates": ()}, "at least one of rates"),
        (PROBE, {"held": 1.0}, "held between 0 and 1"),
        (FEW, {"labels": (Labels(1.5, 0.1, 0.1),)}, "share above 0 and at most 1"),
        (FEW, {"repeats": 0}, "0 repeats"),
    ],
)
def test_settings_that_cannot_work(evaluation: Evaluations, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(evaluation, **changes)


def test_a_warmup_as_long_as_the_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="warmup of 6 epochs, as long as its training"):
        list(replace(FINETUNE, warmup="6 epochs").run(subject(tmp_path)))


def test_the_state_of_another_backbone_is_not_continued(tmp_path: Path) -> None:
    quick = replace(FINETUNE, length="2 epochs")
    first = list(quick.run(subject(tmp_path)))
    assert list(quick.run(subject(tmp_path))) == first

    def other() -> Backbone:
        torch.manual_seed(1)
        return Backbone(SMALL)

    with pytest.raises(UserError, match=r"made with other settings .*backbone"):
        list(quick.run(subject(tmp_path, load=other)))


def test_unreadable_images_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    bad: set[str] = set()
    reading = Reading(SIZE, unreadable=lambda key, _reason: bad.add(key))
    painted = Painted(24, size=20, broken=(3, 23))
    given = subject(tmp_path, Subset(painted, range(20)), test=Subset(painted, range(20, 24)), reading=reading)
    found = dict(replace(FINETUNE, length="3 epochs", batch=10).run(given))
    assert bad == {"colour0/0003.png", "colour2/0023.png"}
    assert found["finetune/top1"] in (0.0, 1 / 3, pytest.approx(2 / 3), 1.0), "of three images"


def test_an_experiment_names_them_and_each_leaves_a_result(tmp_path: Path) -> None:
    wanted: list[dict[str, Any]] = [
        {"kind": "linear_augmented", "rates": [0.5], "length": "2 steps"},
        {"kind": "semi", "labels": [{"share": 0.5, "rate": 0.01, "head_rate": 0.1}], "repeats": 1},
        {"kind": "finetune", "optimizer": "sgd", "rate": 0.01, "length": "2 steps", "warmup": "1 steps"},
    ]
    wanted[1] |= {"length": "1 steps", "at_least": "2 steps"}
    content = {"images": {"kind": "folder", "root": "photos"}, "evaluation": wanted}
    experiment = parse(Experiment, content, "a test")
    assert [type(evaluation) for evaluation in experiment.evaluation] == [Probe, SemiSupervised, FineTune]
    assert parse(Experiment, dump(experiment), "its dump") == experiment
    results = judge(subject(tmp_path), experiment.evaluation, tmp_path, "last")
    assert [result.protocol for result in results] == ["linear_augmented-1", "semi-1", "finetune-1"]
    assert [result.measures[0][0] for result in results] == [
        "linear_augmented/top1",
        "semi/top1@50%",
        "finetune/top1",
    ]
    assert judge(subject(tmp_path), experiment.evaluation, tmp_path, "last") == results
