"""Few labels: subsets by hand, and repeats with rates of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
import torch

from conftest import Painted
from genview.errors import UserError
from genview.evaluation import semi
from genview.evaluation.classifier import Classifier
from genview.evaluation.semi import Labels
from genview.evaluation.subsets import balanced, listed
from genview.evaluation.supervised import Course
from subjects import FEW, stopping, subject

# Subsets


def test_as_many_of_each_class_as_of_any_other_and_at_least_one() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    for share, each in ((0.1, 3), (0.3, 10), (0.001, 1)):  # 10 / 3, 30 / 3, 0.1 / 3
        assert labels[balanced(labels, share, seed=0)].bincount().tolist() == [each] * 3
    assert labels[balanced(labels, 0.75, seed=0)].bincount().tolist() == [25, 25, 20], "of the last there are no more"
    rows = balanced(labels, 0.1, seed=0)
    assert rows == sorted(set(rows)) == balanced(labels, 0.1, seed=0)
    assert rows != balanced(labels, 0.1, seed=1)


class Named(Painted):
    """Six images of two classes, with ImageNet's kind of names and one that both classes have."""

    names = ("n01/n01_7.JPEG", "n02/n02_7.JPEG", "n01/n01_8.JPEG", "n02/n02_8.JPEG", "n01/x.JPEG", "n02/x.JPEG")

    def __init__(self) -> None:
        super().__init__(6, kinds=2)

    def key(self, i: int) -> str:
        return self.names[i]


def test_a_list_as_of_simclr_names_images_by_the_end_of_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "1percent.txt"
    file.write_text("n02_8.JPEG\nn01_7.JPEG\n\nn01/x.JPEG\nn01_7.JPEG\n")
    assert listed(Named(), file, share=0.5) == [0, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01_7.JPEG\n7.JPEG\nn03_1.JPEG\n", r"2 names in .* belong to no image .* '7.JPEG', 'n03_1.JPEG'"),
        ("n01_7.JPEG\nx.JPEG\n", r"1 names in .* belong to several images .* 'x.JPEG'"),
        ("n01_7.JPEG\nn02_7.JPEG\n", r"names 2 of 6 images, a share of 0.33, and not 0.1 of them"),
        ("n01_7.JPEG\n", r"no image of 1 of 2 classes \(the first: 'colour1'\)"),
        ("\n", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_lists_that_do_not_fit_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        listed(Named(), file, share=0.1)


# Whole evaluations


def test_a_repeat_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    quick, cut = replace(FEW, at_least="4 steps"), subject(tmp_path / "cut")
    whole = list(quick.run(subject(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        list(quick.run(replace(cut, reading=stopping(3, "2 of 2"))))
    assert list(quick.run(replace(cut, reading=stopping(3, "1 of 2")))) == whole
    assert not list((tmp_path / "cut").rglob("*.pt")), "what is finished needs no state"
    lists = [(tmp_path / "cut" / f"share-0.25-{n}" / "images.txt").read_text().split() for n in (0, 1)]
    assert [len(names) for names in lists] == [12, 12]
    assert lists[0] != lists[1]


def test_mean_and_deviation_over_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.2, 0.6, 0.7, 0.5])
    monkeypatch.setattr(semi, "tested", lambda *_: {"top1": next(values), "top5": 0.9})
    labels = (Labels(0.01, 0.1, 0.5), Labels(0.125, 0.1, 0.5))
    found = list(replace(FEW, labels=labels).run(subject(tmp_path)))
    assert [name for name, _ in found[:3]] == ["semi/top1@1%", "semi/std@1%", "semi/top5@1%"]
    assert dict(found)["semi/top1@12.5%"] == pytest.approx(0.6)
    assert dict(found)["semi/std@1%"] == pytest.approx(stdev([0.2, 0.6]))


def test_backbone_and_head_have_rates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[Course, Classifier]] = []

    def watched(course: Course, model: Classifier, *_: object) -> dict[str, float]:
        taken.append((course, model))
        return {"top1": 1.0}

    monkeypatch.setattr(semi, "tested", watched)
    list(replace(FEW, labels=(Labels(0.25, rate=0.002, head_rate=0.5),), repeats=1).run(subject(tmp_path)))
    ((course, model),) = taken
    parts = model.trained["backbone"], model.trained["head"]
    rates = [{course.optimizer.rate * course.scales.get(id(p), 1.0) for p in part.parameters()} for part in parts]
    assert rates == [{0.002}, {0.5}]
    assert course.steps == 12, "four epochs of one batch would be 4"
    assert len(course.source) == 12


def test_what_one_list_began_is_not_continued_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi, "tested", lambda *_: {"top1": 1.0})
    file, given = tmp_path / "list.txt", subject(tmp_path / "out")
    names = [given.train.key(i) for i in range(24)]
    some = replace(FEW, labels=(Labels(0.25, rate=0.1, head_rate=0.5, list=str(file)),))
    with pytest.raises(UserError, match=r"list of labelled images .* cannot be read"):
        list(some.run(given))
    file.write_text("\n".join(names[:12]))
    assert list(some.run(given)) == list(some.run(given))
    file.write_text("\n".join(names[12:]))
    with pytest.raises(UserError, match=r"made with other settings .*lists"):
        list(some.run(given))


def test_what_was_begun_without_lists_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi, "tested", lambda *_: {"top1": 1.0})
    list(FEW.run(subject(tmp_path)))
    claimed = json.loads((tmp_path / "settings.json").read_text())
    assert set(claimed) == {"protocol", "settings", "seed", "size", "train", "test", "backbone"}
