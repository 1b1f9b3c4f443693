"""Which images are looked at when: none of the test images before everything is chosen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Painted
from genview.encoders import Backbone
from genview.encoders.backbone import export
from genview.errors import UserError
from genview.evaluation import Features, Knn, Reading, extract
from genview.experiment import Experiment, Stages, parse
from genview.experiment.evaluating import is_judged, online_probe
from genview.experiment.roles import Roles, roles_of
from genview.images import ImageSource, labelled_as
from genview.report.collect import final
from genview.store import read_results

BACKBONE = {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}}


def keys(source: ImageSource | None) -> set[str]:
    return set() if source is None else {source.key(i) for i in range(len(source))}


class Unlabelled(Painted):
    classes: tuple[str, ...] = ()

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.classes = ()

    def key(self, i: int) -> str:
        return f"{i}.png"


class Others(Painted):
    def key(self, i: int) -> str:
        return f"other/{super().key(i)}"


def test_with_test_images_a_part_of_each_class_is_held_out_of_the_training() -> None:
    images, test = Painted(50, kinds=2), Others(9, kinds=2)
    roles = roles_of(images, test, 0.2)
    assert roles.labelled is images
    assert roles.test is test
    assert roles.bank is roles.train
    assert not keys(roles.train) & keys(roles.validation)
    assert keys(roles.train) | keys(roles.validation) == keys(images)
    assert roles.validation is not None
    assert sorted(roles.validation.label(i) or 0 for i in range(10)) == [0] * 5 + [1] * 5
    assert keys(roles_of(images, test, 10).validation) == keys(roles.validation), "10 images are a fifth"


class Named(Others):
    """Test images whose classes have these names, in this order."""

    def __init__(self, count: int, *classes: str) -> None:
        super().__init__(count, kinds=len(classes))
        self.classes = classes


def test_test_images_are_labelled_by_the_names_of_the_classes_that_are_learned() -> None:
    """A test split may lack a class, or list classes in another order; then numbers alone would mean others."""
    test = roles_of(Painted(50), Named(8, "colour2", "colour1"), 0.1).test
    assert test is not None
    assert tuple(test.classes) == ("colour0", "colour1", "colour2")
    assert [test.label(i) for i in range(8)] == [2, 1] * 4
    assert [test.key(i) for i in range(8)] == [Others(8, kinds=2).key(i) for i in range(8)]
    assert test.image(3).tobytes() == Others(8, kinds=2).image(3).tobytes()
    assert labelled_as(Named(3, "b"), ["a", "b"]).label(0) == 1
    with pytest.raises(UserError, match=r"classes that those to learn on lack: aardvark\. The latter have colour0"):
        roles_of(Painted(50), Named(9, "colour0", "aardvark"), 0.1)


def test_classes_of_a_single_image_leave_nothing_to_score() -> None:
    with pytest.raises(UserError, match="no class has more than one"):
        roles_of(Painted(3), None, 0)


def test_without_test_images_a_fifth_is_never_trained_on_nor_chosen_by() -> None:
    roles = roles_of(Painted(50, kinds=2), None, 0.1)
    assert [len(part or []) for part in roles] == [36, 10, 40, 36, 4]
    assert not keys(roles.test) & (keys(roles.train) | keys(roles.validation))
    assert keys(roles.labelled) == keys(roles.train) | keys(roles.validation)


def test_without_a_validation_part_everything_is_trained_on() -> None:
    images, test = Painted(50), Others(9)
    assert roles_of(images, test, 0) == Roles(images, test, images, images, None)


def test_unlabelled_images_are_trained_on_whole() -> None:
    images = Unlabelled(30)
    assert roles_of(images, None, 0.1) == Roles(images)
    roles = roles_of(images, Painted(50, kinds=2), 0.1)
    assert roles.train is images
    assert [len(part or []) for part in roles[1:]] == [10, 40, 36, 4]


@pytest.mark.parametrize("validation", [-0.1, 50, float("nan")])
def test_validation_parts_that_cannot_be(validation: float) -> None:
    with pytest.raises(UserError, match="validation is"):
        roles_of(Painted(50), Others(9), validation)
    with pytest.raises(UserError, match="The test images have no labels"):
        roles_of(Painted(50), Unlabelled(9), 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images to train on and twelve to test on."""
    root, source = tmp_path_factory.mktemp("judged"), Painted(52, kinds=2, size=16)
    for i in range(len(source)):
        path = root / ("train" if i < 40 else "test") / source.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(i).save(path)
    return root


def opened(folder: Path, out: Path, **changes: Any) -> Stages:
    content = {
        "images": {"kind": "folder", "root": str(folder / "train")},
        "test": {"kind": "folder", "root": str(folder / "test")},
        "pairs": {"size": 16},
        "training": {"backbone": BACKBONE, "workers": 0, "device": "cpu"},
        "evaluation": [{"kind": "knn", "k": [3], "plain": False}],
        **changes,
    }
    return Stages.open(parse(Experiment, content, "test.yaml"), out)


def trained(stages: Stages, best: int) -> Stages:
    """Backbones that stand for the last and the best of a training."""
    for path, seed in ((stages.run.backbone, 1), (stages.run.best, best)):
        torch.manual_seed(seed)
        export(Backbone(stages.experiment.training.backbone), path)
    return stages


def silent(_what: str, _done: int, _total: int, _note: str) -> None:
    return


def test_the_probe_of_a_training_looks_at_training_images_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, looked = opened(folder, tmp_path), list[set[str]]()
    shutil.copytree(folder / "train", tmp_path / "alone")

    def watched(backbone: Backbone, source: ImageSource, reading: Reading) -> Features:
        looked.append(keys(source))
        return extract(backbone, source, reading)

    monkeypatch.setattr("genview.evaluation.online.extract", watched)
    probe = online_probe(stages)
    assert probe is not None
    names = [name for name, _ in probe(Backbone(stages.experiment.training.backbone))]
    assert names == ["knn/top1@k=20", "linear/top1"], "the first is by what the best is chosen"
    assert looked == [keys(stages.sources.train), keys(stages.sources.validation)]
    assert len(looked[1]) == 4
    assert not looked[0] & looked[1]
    assert online_probe(replace(stages, experiment=replace(stages.experiment, validation=0))) is None


def test_last_and_best_are_judged_on_the_test_images(folder: Path, tmp_path: Path) -> None:
    stages = trained(opened(folder, tmp_path), best=2)
    assert not is_judged(stages.experiment, stages.run)
    stages.evaluate(silent)
    assert is_judged(stages.experiment, stages.run)
    (last,), (best,) = (read_results(stages.run.evaluation, name) for name in ("last", "best"))
    assert (last.backbone, last.train, last.test, last.size) == ("last", 40, 12, 16)
    assert best.backbone == "best"
    assert final(stages.run).keys() == final(stages.run, "best").keys() == {"knn/top1@k=3"}
    assert final(stages.run, "best") != final(stages.run)


def test_where_the_last_is_the_best_it_is_judged_once(folder: Path, tmp_path: Path) -> None:
    stages, told = trained(opened(folder, tmp_path), best=1), list[str]()
    stages.evaluate(lambda what, done, total, _note: told.append(f"{what} {done}/{total}"))
    assert final(stages.run, "best") == final(stages.run) != {}
    assert read_results(stages.run.evaluation, "best")[0].backbone == "best"
    assert told.count("features 12/12") == 1
    assert is_judged(stages.experiment, stages.run)


def test_evaluations_may_be_changed_in_a_folder_that_has_results(folder: Path, tmp_path: Path) -> None:
    trained(opened(folder, tmp_path), best=2).evaluate(silent)
    first = opened(folder, tmp_path)
    other = opened(folder, tmp_path, evaluation=[{"kind": "knn", "k": [5], "plain": True}])
    assert not is_judged(other.experiment, other.run)
    other.evaluate(silent)
    assert list(final(other.run)) == ["knn/top1@k=5", "knn/plain-top1@k=5"], "those that are asked for now"
    assert is_judged(first.experiment, first.run), "and what was found before is not lost"
    assert other.experiment.evaluation == (Knn(k=(5,)),)
    with pytest.raises(UserError, match=r"validation: there 0\.1, now 0\.2"):
        opened(folder, tmp_path, validation=0.2)
