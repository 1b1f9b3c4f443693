"""Settings of evaluations that cannot work are refused when an experiment is read, not after its training."""

from __future__ import annotations

from typing import Any

import pytest

from genview.errors import UserError
from genview.experiment import Experiment
from genview.experiment.load import parse

OWN = {"kind": "folder", "root": "photos"}
NEEDED: dict[str, dict[str, Any]] = {
    "transfer": {"sets": [{"kind": "own", "name": "mine", "train": OWN}]},
    "outliers": {"images": OWN},
    "detection": {"train": "train.json", "test": "test.json", "images": "photos"},
}


def read(kind: str, **options: object) -> Experiment:
    """Parse an experiment with one evaluation."""
    evaluation = {"kind": kind, **NEEDED.get(kind, {}), **options}
    return parse(Experiment, {"images": OWN, "evaluation": [evaluation]}, "a test")


def few(**options: object) -> list[dict[str, object]]:
    return [{"share": 0.1, "rate": 0.1, "head_rate": 0.5, **options}]


BAD: list[tuple[str, dict[str, object], str]] = [
    ("knn", {"k": [-1, 0, 5]}, r"k to be at least 1, each of them; they are \[-1, 0, 5\]"),
    ("knn", {"k": []}, "at least one of k"),
    ("knn", {"temperature": 0}, "temperature to be above 0; it is 0"),
    ("knn", {"temperature": -1}, "temperature to be above 0"),
    ("knn", {"budget": "lots"}, "budget: 'lots' is no size"),
    ("knn", {"budget": "1.2.3 GB"}, "cannot use its budget"),
    ("linear", {"l2": [], "rates": []}, "at least one of l2 or rates"),
    ("linear", {"decays": []}, "at least one of decays"),
    ("linear", {"l2": [1e-3, -1]}, "l2 to be at least 0, each of them"),
    ("linear", {"decays": [-1]}, "decays to be at least 0"),
    ("linear", {"rates": [-1]}, "rates to be above 0"),
    ("linear", {"rates": [float("nan")]}, "rates to be above 0"),
    ("linear", {"batch": 0}, "batch to be at least 1; it is 0"),
    ("linear", {"iterations": 0}, "iterations to be at least 1"),
    ("linear", {"epochs": 0}, "epochs to be at least 1"),
    ("linear_augmented", {"rates": [0.1, 0]}, "rates to be above 0"),
    ("linear_augmented", {"length": "3 fortnights"}, "length: '3 fortnights' is no duration"),
    ("linear_augmented", {"length": "0 epochs"}, "length: '0 epochs' is no training"),
    ("linear_augmented", {"warmup": "1e999 steps"}, "cannot use its warmup"),
    ("semi", {"labels": few(head_rate=0)}, "head_rate to be above 0"),
    ("semi", {"labels": few(rate=-1)}, "rate to be above 0"),
    ("semi", {"at_least": "some"}, "at_least: 'some' is no duration"),
    ("semi", {"labels": few() + few(list="other.txt")}, r"several of one: \['10%', '10%'\]"),
    ("semi", {"labels": few() + few(share=0.1 + 1e-9)}, "several of one"),
    ("finetune", {"length": "3 fortnights"}, "length: '3 fortnights' is no duration"),
    ("finetune", {"length": "0 steps"}, "length: '0 steps' is no training"),
    ("finetune", {"warmup": "5"}, "warmup: '5' is no duration"),
    ("finetune", {"rate": 0}, "rate to be above 0"),
    ("finetune", {"smoothing": 2}, "smoothing to be at least 0 and below 1"),
    ("finetune", {"mixup": -1}, "mixup to be at least 0"),
    ("finetune", {"layer_decay": -1}, "layer_decay to be above 0 and at most 1"),
    ("transfer", {"k": [-1]}, "k to be at least 1"),
    ("transfer", {"l2": []}, "at least one of l2"),
    ("transfer", {"l2": [-1]}, "l2 to be at least 0"),
    ("transfer", {"iterations": 0}, "iterations to be at least 1"),
    ("robustness", {"l2": []}, "at least one of l2"),
    ("robustness", {"l2": [-1]}, "l2 to be at least 0"),
    ("robustness", {"iterations": 0}, "iterations to be at least 1"),
    ("outliers", {"k": 0}, "k to be at least 1"),
    ("outliers", {"scores": []}, "at least one of scores"),
    ("detection", {"batch": 0}, "batch to be at least 1"),
    ("detection", {"short": []}, "at least one of short"),
    ("detection", {"short": [0]}, "short to be at least 1"),
    ("detection", {"longest": 0}, "longest to be at least 1"),
    ("detection", {"width": 0}, "width to be at least 1"),
    ("detection", {"rate": -1}, "rate to be above 0"),
    ("detection", {"length": "3 fortnights"}, "length: '3 fortnights' is no duration"),
    ("detection", {"length": "0 epochs"}, "length: '0 epochs' is no training"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_settings_that_cannot_work_are_refused(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"Evaluation {kind} .*{message}"):
        read(kind, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in sorted({kind for kind, _, _ in BAD})),
        ("linear", {"rates": [], "decays": []}),
        ("linear", {"l2": []}),
        ("linear", {"l2": [0], "decays": [0]}),
        ("semi", {"labels": few() + few(share=0.01), "length": "0 epochs", "at_least": "5 steps"}),
        ("finetune", {"smoothing": 0, "mixup": 0, "layer_decay": 1, "warmup": "0 epochs"}),
        ("transfer", {"k": []}),
    ],
)
def test_settings_at_the_edge_are_taken(kind: str, options: dict[str, object]) -> None:
    (found,) = read(kind, **options).evaluation
    assert found.kind == kind
