"""What evaluations name is looked for before a training, not days later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import coco_like
import detectors
from conftest import Painted, Said
from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation import Evaluation, Knn, LooksAhead, Outliers, SemiSupervised, Subject, Transfer, look_ahead
from genview.evaluation.judge import name_of
from genview.evaluation.semi import Labels
from genview.evaluation.transfer import NamedSet, OwnSet
from genview.experiment import run_all
from genview.experiment.load import load
from genview.experiment.schema import Experiment
from genview.images import FolderImages
from genview.launch import Here
from genview.store import RunFolder
from learners import VIT
from made_studies import made_study, silent
from subjects import subject

NOWHERE = "/nowhere"
ABSENT: dict[str, Evaluation] = {
    "list of labelled images /nowhere": SemiSupervised(labels=(Labels(0.1, 0.1, 0.1, list=NOWHERE),)),
    "CIFAR10 is not below": Transfer((NamedSet("CIFAR10", NOWHERE),)),
    r"no folder /nowhere": Transfer((OwnSet("mine", FolderImages(NOWHERE)),)),
    r"There is no folder /nowhere": Outliers(FolderImages(NOWHERE)),
    "no annotation file /nowhere": replace(detectors.SMALL, train=NOWHERE, test=NOWHERE, images=NOWHERE),
}


@pytest.mark.parametrize("reason", ABSENT)
def test_what_is_not_there_is_told(reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        look_ahead(subject(tmp_path), [Knn(), ABSENT[reason]])


def test_sets_that_are_fetched_when_their_turn_comes_need_not_be_there(tmp_path: Path) -> None:
    look_ahead(subject(tmp_path), [Transfer((NamedSet("CIFAR10", NOWHERE, download=True),))])


def test_an_evaluation_that_is_done_needs_its_files_no_more(tmp_path: Path) -> None:
    for evaluation in ABSENT.values():
        (tmp_path / f"{name_of(evaluation)}.json").touch()
    look_ahead(subject(tmp_path), list(ABSENT.values()))


def test_a_detector_is_tried_before_it_is_wanted(tmp_path: Path) -> None:
    coco_like.write(tmp_path, coco_like.content(6))
    file = str(tmp_path / "instances.json")
    fine = replace(detectors.SMALL, train=file, test=file, images=str(tmp_path / "images"))
    asked = Subject(detectors.backbone, Painted(2), Painted(2), subject(tmp_path).reading, 0, tmp_path)
    look_ahead(asked, [fine])
    for wrong, reason in (
        (replace(fine, images=str(tmp_path)), r"There is no part/000\.png in"),
        (replace(fine, test_images=str(tmp_path)), r"There is no part/000\.png in"),
        (replace(fine, batch=7), "6 images to learn to detect on are fewer"),
    ):
        with pytest.raises(UserError, match=reason):
            look_ahead(asked, [wrong])
    with pytest.raises(UserError, match="needs a backbone with four stages"):
        look_ahead(replace(asked, load=lambda: Backbone(VIT)), [fine])


def test_progress_is_told_where_there_is_something_to_look_for(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    look_ahead(subject(tmp_path), [Knn()], lambda *words: told.append(words))
    assert not told
    few = SemiSupervised(labels=(Labels(0.1, 0.1, 0.1),))
    assert isinstance(few, LooksAhead)
    look_ahead(subject(tmp_path), [Knn(), few], lambda *words: told.append(words))
    assert told == [("look ahead", 0, 1, "semi"), ("look ahead", 1, 1, "")]


WRONG = f"[{{kind: outliers, images: {{kind: folder, root: {NOWHERE}}}}}]"


def test_every_verb_looks_before_it_works(tmp_path: Path, said: Callable[..., Said]) -> None:
    study = made_study(tmp_path)
    base, out = tmp_path / "base.yaml", tmp_path / "out"
    with pytest.raises(UserError, match=NOWHERE):
        run_all(load(Experiment, base, [f"evaluation={WRONG}"]), out, Here(), silent)
    assert not RunFolder(out).analysis.exists()
    for words in (
        ("check", base, "--set", f"evaluation={WRONG}"),
        ("check", study, "--set", f"experiment.evaluation={WRONG}"),
        (
            "study",
            study,
            "--set",
            f"experiment.evaluation={WRONG}",
            "--set",
            "seeds=[0]",
            "--out",
            tmp_path / "study",
        ),
    ):
        found = said(*words)
        assert found.returncode == 2, words
        assert NOWHERE in found.stderr
    failures = list((tmp_path / "study" / "runs").rglob("failure.txt"))
    assert [path.parent.parent.name for path in sorted(failures)] == ["adaptive-quality", "baseline"]
    assert not list((tmp_path / "study").rglob("backbone.safetensors"))
