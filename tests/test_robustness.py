"""Corruptions against loops and scikit-image, accuracy on them, and outliers against loops."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Painted
from genview.encoders import Backbone
from genview.errors import UserError
from genview.evaluation import Features, Reading
from genview.evaluation.corruptions import STRENGTHS, Corrupted, Corruption, corrupted
from genview.evaluation.outliers import Outliers, auroc, knn_distance, mahalanobis
from genview.evaluation.robustness import Robustness
from genview.evaluation.subject import Subject
from genview.images import FolderImages


class MeanColour(nn.Module):
    """A backbone whose features are the mean colours."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def subject(folder: Path, **reading: object) -> Subject:
    return Subject(
        lambda: cast(Backbone, MeanColour()),
        Painted(30),
        Painted(24, size=40),
        Reading(16, **reading),  # type: ignore[arg-type]
        3,
        folder,
    )


def picture(size: tuple[int, int] = (20, 16)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    pixels[0, 0], pixels[1, 1] = 0, 255
    return Image.fromarray(pixels)


def floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def test_brightness_raises_the_value_of_each_pixel() -> None:
    found = floats(corrupted(picture(), "brightness", 0.3))
    for row, expected in zip(found.reshape(-1, 3), floats(picture()).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*expected)
        assert row == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.3)), abs=0.003)


def test_contrast_shrinks_towards_the_mean_of_each_channel() -> None:
    x = floats(picture())
    found = floats(corrupted(picture(), "contrast", 0.2))
    for channel in range(3):
        mean = x[..., channel].mean()
        assert found[..., channel] == pytest.approx(mean + 0.2 * (x[..., channel] - mean), abs=0.003)


def test_blur_is_scikit_images() -> None:
    from skimage import filters

    found = floats(corrupted(picture(), "gaussian_blur", 1.5))
    expected = filters.gaussian(floats(picture()), sigma=1.5, channel_axis=-1)  # type: ignore[no-untyped-call]
    assert found == pytest.approx(expected, abs=0.003)


def test_pixelated_images_are_means_of_blocks() -> None:
    x, found = floats(picture((8, 4))), floats(corrupted(picture((8, 4)), "pixelate", 0.5))
    for row in range(4):
        for column in range(8):
            top, left = row // 2 * 2, column // 2 * 2
            block = x[top : top + 2, left : left + 2].mean(axis=(0, 1))
            assert found[row, column] == pytest.approx(block, abs=0.005)


def test_noise_has_its_deviation_and_depends_on_the_seed_alone() -> None:
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    noise = floats(corrupted(grey, "gaussian_noise", 0.1, seed=1)) - 128 / 255
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    assert abs(noise.mean()) < 0.003
    same, other = (floats(corrupted(grey, "gaussian_noise", 0.1, seed)) - 128 / 255 for seed in (1, 2))
    assert (same == noise).all()
    assert abs(np.corrcoef(noise.flatten(), other.flatten())[0, 1]) < 0.03
    source = Painted(2)
    pair = [
        floats(Corrupted(source, 32, "gaussian_noise", 0.1, 0).image(i)) - floats(source.image(i)) for i in (0, 1)
    ]
    assert abs(np.corrcoef(pair[0].flatten(), pair[1].flatten())[0, 1]) < 0.2, "images have noise of their own"


@pytest.mark.parametrize("strengths", ["imagenet_c", "cifar_c"])
@pytest.mark.parametrize("name", STRENGTHS["cifar_c"])
def test_worse_severities_change_more(name: Corruption, strengths: str) -> None:
    """Measured on a photograph-like picture, smooth with a few edges."""
    rows, columns = np.mgrid[:64, :64] / 63
    smooth = np.stack([rows, columns, (rows - 0.5) ** 2 + (columns > 0.4)], axis=2) * 0.6
    image = Image.fromarray((smooth.clip(0, 1) * 255).astype(np.uint8))
    table = STRENGTHS[strengths][name]  # type: ignore[index]
    changes = [np.abs(floats(corrupted(image, name, strength)) - floats(image)).mean() for strength in table]
    assert len(changes) == 5
    assert 0 < changes[0] < changes[-1]
    assert max(changes) == changes[-1]


def test_corrupted_images_are_squared_first() -> None:
    source = Corrupted(Painted(3, size=40), 16, "contrast", 0.5, 0)
    assert source.image(1).size == (16, 16)
    assert (source.key(1), source.label(1), len(source)) == ("colour1/0001.png", 1, 3)


def test_accuracies_and_their_means(tmp_path: Path) -> None:
    found = dict(Robustness(corruptions=("contrast", "gaussian_noise"), severities=(1, 5)).run(subject(tmp_path)))
    assert list(found) == [
        "robustness/top1",
        "robustness/clean/top1",
        "robustness/contrast/top1",
        "robustness/gaussian_noise/top1",
        "robustness/contrast/top1@severity=1",
        "robustness/contrast/top1@severity=5",
        "robustness/gaussian_noise/top1@severity=1",
        "robustness/gaussian_noise/top1@severity=5",
    ]
    assert found["robustness/clean/top1"] == 1.0
    for name in ("contrast", "gaussian_noise"):
        one, five = (found[f"robustness/{name}/top1@severity={s}"] for s in (1, 5))
        assert found[f"robustness/{name}/top1"] == pytest.approx((one + five) / 2)
    assert found["robustness/contrast/top1@severity=1"] == 1.0, "a mean colour does not notice it"
    means = [found[f"robustness/{name}/top1"] for name in ("contrast", "gaussian_noise")]
    assert found["robustness/top1"] == pytest.approx(np.mean(means))


def test_each_severity_is_kept_and_belongs_to_its_settings(tmp_path: Path) -> None:
    some, told = Robustness(corruptions=("contrast",), severities=(2, 3), l2=(1e-3,)), list[str]()
    whole = list(some.run(subject(tmp_path)))
    (tmp_path / "contrast-2.json").unlink()
    assert list(some.run(subject(tmp_path, tell=lambda what, *_: told.append(what)))) == whole
    assert set(told) == {"features", "contrast 2"}
    with pytest.raises(UserError, match=r"strengths: there null, now .imagenet_c"):
        list(replace(some, strengths="imagenet_c").run(subject(tmp_path)))
    for wrong in ({"severities": (0, 1)}, {"severities": ()}, {"corruptions": ()}):
        with pytest.raises(UserError, match="severities from 1 to 5"):
            Robustness(**wrong)


def test_small_images_are_corrupted_as_cifars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(source: object, size: int, name: Corruption, strength: float, seed: int) -> Corrupted:
        seen.append((size, strength))
        return Corrupted(source, size, name, strength, seed)  # type: ignore[arg-type]

    monkeypatch.setattr("genview.evaluation.robustness.Corrupted", watched)
    for size, strengths in ((64, None), (65, None), (64, "imagenet_c")):
        own = subject(tmp_path / f"{size}{strengths}")
        few = Subject(own.load, Painted(6), Painted(3), Reading(size), 0, own.folder)
        settings = Robustness(corruptions=("jpeg",), severities=(2,), l2=(1e-3,), strengths=strengths)  # type: ignore[arg-type]
        list(settings.run(few))
    assert seen == [(64, 65), (65, 18), (64, 18)]


def test_the_area_under_the_curve_against_pairs() -> None:
    chance = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 9, (n,), generator=chance).float() for n in (30, 20))
    pairs = [(o > i) + 0.5 * (o == i) for o in outside.tolist() for i in inside.tolist()]
    assert 0.2 < np.mean(pairs) < 0.8
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0])) == 1.0


def test_distances_against_loops() -> None:
    chance = torch.Generator().manual_seed(0)
    bank, x = (Features(torch.randn(n, 4, generator=chance), torch.zeros(n).long()) for n in (20, 9))
    for k in (1, 3, 99):
        expected = []
        for row in x.x.numpy().astype(float):
            distances = sorted(
                float(np.linalg.norm(row / np.linalg.norm(row) - b / np.linalg.norm(b)))
                for b in bank.x.numpy().astype(float)
            )
            expected.append(distances[min(k, 20) - 1])
        assert knn_distance(bank, x, k).tolist() == pytest.approx(expected, abs=1e-4)


def test_mahalanobis_against_loops() -> None:
    """Two classes, one of them numbered 5, and a feature that never varies."""
    chance = np.random.default_rng(0)
    rows = np.concatenate([chance.normal(size=(40, 3)) @ np.diag([1, 3, 0.5]), np.ones((40, 1))], axis=1)
    y = np.array([0, 5] * 20)
    rows[y == 5, 0] += 4
    asked = np.concatenate([chance.normal(size=(6, 3)) * 3, np.ones((6, 1))], axis=1)
    means = {label: rows[y == label].mean(axis=0) for label in (0, 5)}
    shared = np.mean([np.outer(r - means[n], r - means[n]) for r, n in zip(rows, y, strict=True)], axis=0)
    inverse = np.linalg.inv(shared[:3, :3])
    expected = [min(float((a - m)[:3] @ inverse @ (a - m)[:3]) for m in means.values()) for a in asked]
    train, x = Features(torch.tensor(rows).float(), torch.tensor(y)), torch.tensor(asked).float()
    assert mahalanobis(train, x).tolist() == pytest.approx(expected, rel=1e-3)
    assert torch.allclose(mahalanobis(train, x, chunk=4), mahalanobis(train, x))


def test_white_images_among_coloured_ones_stand_out(tmp_path: Path) -> None:
    for n in range(4):
        Image.new("RGB", (20, 20), (250 - n,) * 3).save(tmp_path / f"{n}.png")
    settings = Outliers(FolderImages(str(tmp_path)), scores=("knn", "mahalanobis"), k=3)
    found = dict(settings.run(subject(tmp_path / "out")))
    assert list(found) == ["outliers/knn/auroc", "outliers/mahalanobis/auroc"]
    assert all(value > 0.95 for value in found.values())
    known = Path(tmp_path / "known")
    known.mkdir()
    for i in range(24):
        Painted(24, size=40).image(i).save(known / f"{i}.png")
    (same,) = dict(Outliers(FolderImages(str(known))).run(subject(tmp_path / "out"))).values()
    assert same == pytest.approx(0.5, abs=0.02), "the test images themselves"
