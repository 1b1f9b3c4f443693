"""torchvision's sets in their layout on disk, and what is learned of them on frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import sets
from genview.errors import UserError
from genview.evaluation import Features, Knn, Reading
from genview.evaluation.detection import Detection
from genview.evaluation.knn import neighbours
from genview.evaluation.outliers import Outliers
from genview.evaluation.regression import Regressing, halved, mean_per_class, top1
from genview.evaluation.robustness import Robustness
from genview.evaluation.transfer import NamedSet, OwnSet, Transfer
from genview.experiment import Experiment
from genview.experiment.load import parse
from genview.images import FolderImages, TorchvisionImages, UnreadableImage
from genview.images.torchvision_sets import PARTS, SetName
from genview.training.duration import bytes_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for write in sets.WRITERS.values():
        write(folder)
    return folder


@pytest.fixture(autouse=True)
def _digests_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)


FOUND: list[tuple[SetName, str, list[str], list[int]]] = [
    (
        "Food101",
        "test",
        [f"food-101/images/{n}/{k}.jpg" for n in ("apple_pie", "steak") for k in (3, 4)],
        [0, 0, 1, 1],
    ),
    ("Flowers102", "val", ["flowers-102/jpg/image_00003.jpg", "flowers-102/jpg/image_00004.jpg"], [0, 1]),
    ("Flowers102", "test", ["flowers-102/jpg/image_00005.jpg", "flowers-102/jpg/image_00006.jpg"], [0, 1]),
    (
        "OxfordIIITPet",
        "test",
        [f"oxford-iiit-pet/images/{n}_{k}.jpg" for n in ("Abyssinian", "great_pyrenees") for k in (4, 5)],
        [0, 0, 1, 1],
    ),
    ("DTD", "val", [f"dtd/dtd/images/{n}/{n}_1{k}.jpg" for n in ("banded", "woven") for k in (0, 1)], [0, 0, 1, 1]),
    (
        "FGVCAircraft",
        "train",
        [f"fgvc-aircraft-2013b/data/images/{n}.jpg" for n in ("000", "001", "010", "011")],
        [0, 0, 1, 1],
    ),
]


@pytest.mark.parametrize(("name", "part", "keys", "labels"), FOUND)
def test_sets_of_files(root: Path, name: SetName, part: str, keys: list[str], labels: list[int]) -> None:
    source = TorchvisionImages(str(root), name=name, part=part).build()  # type: ignore[arg-type]
    assert [source.key(i) for i in range(len(source))] == keys
    assert [source.label(i) for i in range(len(source))] == labels
    for i in (0, len(source) - 1):
        colour = np.asarray(source.image(i))[6, 12].astype(int)
        assert np.abs(colour - sets.COLOURS[labels[i]]).max() < 12


def test_classes_have_names(root: Path) -> None:
    classes = {
        name: TorchvisionImages(str(root), name=name).build().classes
        for name in PARTS
        if not name.startswith("CIFAR")
    }
    assert classes["Food101"] == ("apple_pie", "steak")
    assert classes["OxfordIIITPet"] == ("Abyssinian", "Great Pyrenees")
    assert classes["FGVCAircraft"] == ("707-320", "A340 600")
    assert classes["Caltech101"] == ("anchor", "yin_yang"), "without the background"
    assert classes["SUN397"] == ("abbey", "church/outdoor")
    assert classes["Flowers102"][0] == "pink primrose"


@pytest.mark.parametrize(
    ("name", "sizes"), [("Caltech101", {0: (30, 2), 1: (30, 3)}), ("SUN397", {0: (50, 50), 1: (50, 50)})]
)
def test_sets_without_a_split_get_one(root: Path, name: SetName, sizes: dict[int, tuple[int, int]]) -> None:
    train, test = (TorchvisionImages(str(root), name=name, part=part).build() for part in ("train", "test"))
    keys = [{part.key(i) for i in range(len(part))} for part in (train, test)]
    assert not keys[0] & keys[1]
    for label, counts in sizes.items():
        assert tuple(sum(part.label(i) == label for i in range(len(part))) for part in (train, test)) == counts
    again = TorchvisionImages(str(root), name=name).build()
    assert [again.key(i) for i in range(len(again))] == [train.key(i) for i in range(len(train))]
    own = sorted(train.key(i) for i in range(len(train)) if train.label(i) == 0)
    every = sorted(key for key in keys[0] | keys[1] if key.rsplit("/", 1)[0] == own[0].rsplit("/", 1)[0])
    assert own != every[: len(own)], "shuffled"


def test_parts_that_a_set_does_not_have(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Food101 has no part 'val', only train, test"):
        TorchvisionImages(str(root), name="Food101", part="val").build()
    for name in sets.WRITERS:
        with pytest.raises(UserError, match=rf"{name} is not below .*`download` to true"):
            TorchvisionImages(str(tmp_path), name=name).build()  # type: ignore[arg-type]


def test_a_file_of_a_set_that_is_gone(tmp_path: Path) -> None:
    sets.textures(tmp_path)
    source = TorchvisionImages(str(tmp_path), name="DTD").build()
    (tmp_path / source.key(0)).unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.image(0)


def test_the_mean_over_classes_by_hand() -> None:
    """Class 0: 3 of 4, class 2: 0 of 1, class 1 does not occur."""
    y, predicted = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 1, 1])
    assert mean_per_class(predicted, y) == pytest.approx((3 / 4 + 0) / 2)
    assert top1(predicted, y) == pytest.approx(3 / 5)
    assert mean_per_class(torch.tensor([5, 2]), torch.tensor([0, 2])) == 0.5


def noisy(count: int, seed: int, width: int = 60) -> Features:
    chance = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = 4 * torch.randn(count, width, generator=chance)
    x[:, :3] += 6 * nn.functional.one_hot(y, 3)
    return Features(x, y)


def test_a_regression_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = noisy(90, 1, 6), noisy(60, 2, 6)
    scaler = StandardScaler().fit(train.x.numpy())
    theirs = LogisticRegression(C=1 / (1e-2 * 90), tol=1e-8, max_iter=2000)
    theirs.fit(scaler.transform(train.x.numpy()), train.y.numpy())
    ours = Regressing((), 500, top1).fit(train, 3, 1e-2).predicted(test)
    assert (ours.numpy() == theirs.predict(scaler.transform(test.x.numpy()))).mean() > 0.96


def test_the_strength_is_the_best_on_the_validation_part_under_the_measure() -> None:
    train, held = noisy(90, 1), noisy(300, 2)
    how = Regressing((1e-6, 1.0), 200, top1)
    worth = {l2: how.fit(train, 3, l2).score(held, top1) for l2 in how.l2}
    assert worth[1.0] > worth[1e-6] + 0.01
    assert how.chosen(train, held, 3) == 1.0
    assert replace(how, measure=lambda p, y: -top1(p, y)).chosen(train, held, 3) == 1e-6
    own, part = halved(train, 0.2, seed=0)
    assert (len(own.y), part.y.bincount().tolist()) == (72, [6, 6, 6])


def test_every_set_that_torchvision_has(root: Path, tmp_path: Path) -> None:
    """A backbone that sees the class learns all of them; names say set, classifier and measure."""
    named = [NamedSet(name, str(root)) for name in PARTS if not name.startswith("CIFAR")]
    found = dict(Transfer(tuple(named), l2=(1e-4, 1e-3), k=(1, 500), iterations=20).run(sets.subject(tmp_path)))
    usual = {"Flowers102", "OxfordIIITPet", "FGVCAircraft", "Caltech101"}
    rows = [
        row
        for one in named
        for row in (
            f"transfer/{one.name}/linear/{'mean_per_class' if one.name in usual else 'top1'}",
            f"transfer/{one.name}/knn/top1@k=1",
        )
    ]
    assert list(found) == ["transfer/mean/linear", *rows]
    assert set(found.values()) == {1.0}


def test_neighbours_are_sought_as_by_the_knn_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device of the backbone, within its bytes, with progress, and once for all k."""
    seen, told = [], set[str]()

    def watched(train: Features, test: Features, k: int, **more: Any) -> Any:
        seen.append((k, more["device"], more["budget"]))
        return neighbours(train, test, k, **more)

    monkeypatch.setattr("genview.evaluation.knn.neighbours", watched)
    mine = own(tmp_path)
    reading = Reading(16, device="cpu:0", tell=lambda what, *_: told.add(what))
    asked = replace(sets.subject(tmp_path / "out"), reading=reading)
    found = dict(Transfer((OwnSet("mine", mine["train"], mine["test"]),), l2=(1e-3,), k=(1, 3, 500)).run(asked))
    assert list(found)[2:] == ["transfer/mine/knn/top1@k=1", "transfer/mine/knn/top1@k=3"]
    assert seen == [(3, "cpu:0", bytes_of(Knn().budget))]
    assert "mine neighbours" in told


def own(folder: Path, parts: tuple[str, ...] = ("train", "test"), count: int = 6) -> dict[str, FolderImages]:
    for part in parts:
        for label, name in enumerate(("ant", "bee")):
            for n in range(count):
                sets.paint(folder / part / name / f"{n}.png", label, n)
    return {part: FolderImages(str(folder / part)) for part in parts}


def test_sets_of_ones_own_continue_after_a_kill(tmp_path: Path) -> None:
    mine = own(tmp_path / "a")
    first = OwnSet("first", mine["train"], mine["test"])
    second = OwnSet("second", own(tmp_path / "b")["train"], measure="mean_per_class")
    both, place = Transfer((first, second), l2=(1e-3,), iterations=30), tmp_path / "out"
    whole = list(both.run(sets.subject(place)))
    assert [name for name, _ in whole] == [
        "transfer/mean/linear",
        "transfer/first/linear/top1",
        "transfer/second/linear/mean_per_class",
    ]
    (place / "first.json").write_text('[["transfer/first/linear/top1", 0.25]]')
    (place / "second.json").unlink()
    assert dict(both.run(sets.subject(place))) == {**dict(whole), "transfer/mean/linear": 0.625, whole[1][0]: 0.25}
    with pytest.raises(UserError, match="iterations: there 30, now 31"):
        list(replace(both, iterations=31).run(sets.subject(place)))
    (tmp_path / "a/test/bee/0.png").unlink()
    with pytest.raises(UserError, match=r"found\.first"):
        list(both.run(sets.subject(place)))
    (place / "first.json").write_text("[[")
    sets.paint(tmp_path / "a/test/bee/0.png", 1)
    with pytest.raises(UserError, match=r"first\.json is damaged"):
        list(both.run(sets.subject(place)))


def test_the_test_images_choose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strengths are chosen on validation images where there are some, else on a part of the training images."""
    seen = []

    def watched(_: object, train: Features, held: Features, classes: int) -> float:
        assert classes == 2
        seen.append((len(train.y), len(held.y)))
        return 1e-3

    monkeypatch.setattr(Regressing, "chosen", watched)
    parts = own(tmp_path, ("train", "val", "test"), count=10)
    given = OwnSet("given", parts["train"], parts["test"], parts["val"])
    without = OwnSet("without", parts["train"], parts["test"])
    alone = OwnSet("alone", parts["train"])
    list(Transfer((given, without, alone), iterations=10).run(sets.subject(tmp_path / "out")))
    assert seen == [(20, 20), (18, 2), (14, 2)]


def test_sets_that_do_not_fit(tmp_path: Path) -> None:
    parts = own(tmp_path)
    sets.paint(tmp_path / "test/cow/1.png", 2)
    with pytest.raises(UserError, match=r"set 'mine' have different classes \(cow not in all"):
        list(Transfer((OwnSet("mine", parts["train"], parts["test"]),)).run(sets.subject(tmp_path / "out")))
    bare = FolderImages(str(tmp_path / "train/ant"))
    with pytest.raises(UserError, match="'bare' have no labels"):
        list(Transfer((OwnSet("bare", bare, bare),)).run(sets.subject(tmp_path / "out")))
    for names in ((), ("a", "a"), ("a/b",), ("..",)):
        with pytest.raises(UserError, match="names of their own"):
            Transfer(tuple(OwnSet(name, bare) for name in names))


def test_the_snippets_of_the_documentation_are_evaluations() -> None:
    """And the names and protocols of its table are theirs."""
    text = (Path(__file__).parent.parent / "docs" / "evaluation-transfer.md").read_text()
    known = {kind.kind: kind for kind in (Transfer, Detection, Robustness, Outliers)}
    images = {"kind": "folder", "root": "IMAGES"}
    found = [
        row
        for block in text.split("```yaml\n")[1:]
        for row in parse(
            Experiment, {"images": images, **yaml.safe_load(block.partition("```")[0])}, "docs"
        ).evaluation
    ]
    assert {type(one) for one in found} == set(known.values())
    assert all(f"| `{kind.kind}` |" in text and f"`{kind.protocol}`" in text for kind in known.values())
    assert all(f"| {name}" in text or f", {name} |" in text for name in PARTS)


def test_faults_of_a_set_are_those_of_its_kind() -> None:
    """A set may be of several kinds, and its images too; what the other kinds would need is not said."""

    def told(one: dict[str, object]) -> list[str]:
        content = {"images": {"kind": "folder", "root": "x"}, "evaluation": [{"kind": "transfer", "sets": [one]}]}
        with pytest.raises(UserError) as error:
            parse(Experiment, content, "f.yaml")
        return str(error.value).splitlines()[1:]

    (fault,) = told({"kind": "torchvision", "name": "Flowers", "root": "d"})
    assert "Flowers102" in fault
    (fault,) = told({"kind": "own", "name": "mine", "train": {"kind": "folder", "root": "y", "labls": "none"}})
    assert fault.endswith("train.FolderImages.labls: unknown key. Did you mean 'labels'?")
    assert told({"kind": "mine"}) != []
