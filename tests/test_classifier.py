"""The classifier that judges views: what it is shown, what it learns, and that it is trained only once."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from judging import TINY, painted, silent

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from classifier import Classifier, Recipe, classifier_for, shifted, train
from judge import look


def test_shifted_images_are_crops_of_the_mirrored_border() -> None:
    torch.manual_seed(0)
    images = painted(40, size=16).images
    seen = [_how(image, result) for image, result in zip(images, shifted(images, 0.125), strict=True)]
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def _how(image: Tensor, result: Tensor) -> tuple[int, int, bool]:
    wide = F.pad(image[None].float(), (2,) * 4, mode="reflect")[0]
    for top, left, mirrored in product(range(5), range(5), (False, True)):
        crop = wide[:, top : top + 16, left : left + 16]
        if torch.equal(crop.flip(2) if mirrored else crop, result):
            return top, left, mirrored
    raise AssertionError("no crop of the image")


def test_whitened_patches_are_uncorrelated() -> None:
    net, images = Classifier((4, 4, 4), 3), painted(60).images / 255
    images = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    net.whiten(images)
    found = net.patches(images - 0.5)[:, :12].transpose(0, 1).flatten(1)
    assert torch.allclose(found @ found.T / found.shape[1], torch.eye(12), atol=0.06)
    assert torch.equal(net.patches.weight[12:], -net.patches.weight[:12])


def test_the_classifier_learns_and_is_kept(tmp_path: Path) -> None:
    data, told = painted(120), list[int]()
    net = classifier_for(data, "painted", TINY, tmp_path, lambda _what, done, _total: told.append(done))
    test = painted(60, first=120)
    assert float((look(net, test.images).classes == test.labels).float().mean()) > 0.9
    assert told == list(range(1, 51))
    again = classifier_for(data, "painted", TINY, tmp_path, lambda *_: pytest.fail("trained again"))
    assert torch.equal(look(again, test.images).features, look(net, test.images).features)
    with pytest.raises(RuntimeError, match="trained again"):
        classifier_for(data.first(100), "painted", TINY, tmp_path, _refuse)
    assert len(list(tmp_path.iterdir())) == 1


def _refuse(what: str, done: int, total: int) -> None:
    raise RuntimeError(f"trained again ({what} {done}/{total})")


def test_training_is_the_same_every_time() -> None:
    short = Recipe(widths=(8, 8, 8), samples=96, batch=32)
    a, b = (train(painted(60), short, "cpu", silent).head.weight for _ in range(2))
    assert torch.equal(a, b)
