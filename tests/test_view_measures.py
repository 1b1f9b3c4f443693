"""Fréchet distance, copies, and what is kept in masks: by hand, by loops, on generators whose faults are known."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from judging import Colour, Noisy, judged, painted, silent

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from classifier import Labelled
from columns import Row
from copies import Near, as_jpeg, near
from drawing import compare
from frechet import frechet
from in_masks import Kept, Photographs
from judge import Views, rmse


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_by_hand() -> None:
    """Axes that are uncorrelated: squared differences of the means and of the standard deviations."""
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    a, b = square * torch.tensor([3.0, 2.0]), square * torch.tensor([1.0, 5.0]) + torch.tensor([4.0, -1.0])
    assert frechet(a, b) == pytest.approx(4**2 + 1 + (2**2 + 3**2) * 4 / 3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_against_the_roots_of_the_product() -> None:
    a, b = normal(50, 6) @ normal(6, 6, seed=1), normal(70, 6, seed=2) @ normal(6, 6, seed=3) + 0.5
    spreads = [torch.from_numpy(np.cov(x.double().numpy().T)) for x in (a, b)]
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).sqrt().sum().real
    between = (a.double().mean(0) - b.double().mean(0)).square().sum()
    assert frechet(a, b) == pytest.approx(float(between + spreads[0].trace() + spreads[1].trace() - 2 * roots))
    assert frechet(a, b) == pytest.approx(frechet(b, a))


def test_frechet_distance_of_few_is_finite_and_larger() -> None:
    real, more = normal(2000, 16), normal(1000, 16, seed=1)
    distances = [frechet(more[:count], real) for count in (8, 50, 1000)]
    assert distances[0] > distances[1] > distances[2] > 0, "fewer than dimensions, too"
    assert np.isnan(frechet(more[:1], real))


def test_nearest_training_images_against_loops() -> None:
    images, bank, told = painted(5).images, painted(70, first=5).images, list[int]()
    bank[3] = images[2].flip(2)
    found = near(images, bank, "looking", lambda _what, done, _total: told.append(done))
    flat, sides = bank.numpy().astype(float), [images.numpy().astype(float), images.flip(3).numpy().astype(float)]
    for i in range(5):
        distances = sorted(min(((side[i] - b) ** 2).mean() ** 0.5 for side in sides) / 255 for b in flat)
        assert float(found.distance[i]) == pytest.approx(distances[0], abs=1e-3)
        assert float(found.others[i]) == pytest.approx(sum(distances[1:51]) / 50, abs=1e-3)
    assert float(found.distance[2]) < 1e-3, "mirrored"
    assert told == [70]


def test_a_bank_is_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, bank = painted(5).images, painted(70, first=5).images
    whole = near(images, bank, "looking", silent)
    monkeypatch.setattr("copies.CHUNK", 9)
    for parts, found in zip(near(images, bank, "looking", silent), whole, strict=True):
        assert torch.allclose(parts, found, atol=1e-4)


def textured(count: int, seed: int) -> Tensor:
    """Smooth coloured patterns, no two alike, uint8 count×3×16×16."""
    waves = F.interpolate(normal(count, 3, 5, 5, seed=seed), (16, 16), mode="bicubic")
    return (waves * 50 + 128).clamp(0, 255).byte()


@pytest.mark.parametrize("how", ["noise", "jpeg", "mirrored", "darker"])
def test_copies_of_training_images_are_found(how: str) -> None:
    bank = textured(200, seed=0)
    made = {
        "noise": (bank.float() + 8 * normal(*bank.shape, seed=9)).clamp(0, 255).byte(),
        "jpeg": as_jpeg(bank, 50),
        "mirrored": bank.flip(3),
        "darker": (bank * 0.95).byte(),
    }
    assert near(made[how][:30], bank, "looking", silent).copies.all()


def test_other_images_are_no_copies_of_training_images() -> None:
    bank, others = textured(200, seed=0), textured(30, seed=1)
    blurred = F.avg_pool2d(others.float(), 7, 1, 3, count_include_pad=False).byte()
    grey = torch.full_like(others, 128)
    mixed = ((bank[:30].float() + bank[30:60].float()) / 2).byte()
    for images in (others, blurred, grey, mixed):
        assert not near(images, bank, "looking", silent).copies.any()
    # That is why the measure is relative: grey is nearer to all than they are to one another.
    assert near(grey, bank, "looking", silent).distance.max() < near(others, bank, "looking", silent).distance.min()
    assert Near(torch.tensor([0.1, 0.1]), torch.tensor([0.21, 0.19])).copies.tolist() == [True, False]


def test_copies_of_sources_are_what_differs_less_than_a_jpeg() -> None:
    sources = Labelled([str(i) for i in range(20)], textured(20, seed=0), torch.zeros(20, dtype=torch.int64))
    judge, jpeg = judged(sources, textured(60, seed=1)), as_jpeg(sources.images)
    allowed = rmse(jpeg, sources.images)
    assert float(allowed.min()) > 0.002
    assert float(allowed.max()) < 0.06

    def share(images: Tensor) -> float:
        return judge.row("views", Views.all(images)).source_copies

    assert share(sources.images) == share(as_jpeg(sources.images, 95)) == share(sources.images ^ 1) == 1
    assert share(jpeg) == share(as_jpeg(sources.images, 20)) == share(sources.images.flip(3)) == 0
    assert share(sources.images.roll(1, dims=0)) == 0


class Repeats(Noisy):
    """Copies its source, whatever the level."""

    scale = 1

    def changed(self, images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        return images


class Recites(Noisy):
    """Returns some image that it was trained on, not quite exactly."""

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.bank = bank

    def changed(self, images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        found = torch.cdist(images.flatten(1), self.bank.flatten(1) / 255).argmin(dim=1)
        return self.bank[found] / 255 + 0.01 * noise


class Repaints(Noisy):
    """Noise in the background alone, or in the foreground alone: Painted's discs are brighter than its grounds."""

    scale = 1

    def __init__(self, *, foreground: bool = False) -> None:
        super().__init__()
        self.foreground = foreground

    def changed(self, images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
        thing = (images.amin(dim=1, keepdim=True) > 0.7).float()
        return images + strength * noise * (thing if self.foreground else 1 - thing)


def photographs(count: int = 30) -> Photographs:
    images = painted(count, first=500)
    return Photographs(Colour(), images, (images.images.amin(dim=1, keepdim=True) > 0.7 * 255).float())


def levels_of(generator: Noisy, bank: Tensor) -> tuple[Row, Row, Row]:
    """Real images, then levels 100 and 400."""
    judge = judged(painted(48), bank)
    low, high = compare(judge, photographs(), generator, (100, 400), 1.0, "level").rows
    return judge.row("source", Views.all(judge.sources.images)), low, high


def test_a_generator_that_copies_its_source() -> None:
    for row in levels_of(Repeats(), painted(60, first=2000).images)[1:]:
        assert (row.source_copies, row.between_draws, row.relative) == (1, 0, 1)
        assert row.to_training == 1
        assert (row.inside, row.outside) == pytest.approx((1, 1), abs=1e-4)
        assert (row.difference, row.rmse_inside, row.rmse_outside) == pytest.approx((0, 0, 0), abs=1e-6)


def test_a_generator_that_copies_training_images() -> None:
    bank = textured(60, seed=3)
    real, low, high = levels_of(Recites(bank), bank)
    assert real.training_copies == 0
    for row in (low, high):
        assert row.training_copies == 1
        assert row.to_training < 0.2
        assert row.source_copies == 0
        assert row.frechet > 10 * real.frechet, "a few others again and again"


def test_a_generator_that_repaints_one_side_of_the_mask() -> None:
    bank = painted(60, first=2000).images
    _, low, high = levels_of(Repaints(), bank)
    assert (low.inside, high.inside) == pytest.approx((1, 1), abs=1e-4)
    assert 1 > (low.outside or 0) > (high.outside or 0)
    assert 0 < (low.difference or 0) < (high.difference or 0)
    assert (high.difference or 0) > 5 * (high.difference_error or 1)
    assert high.rmse_inside == 0
    assert (high.rmse_outside or 0) > (low.rmse_outside or 0) > 0.1
    _, low, high = levels_of(Repaints(foreground=True), bank)
    assert high.outside == pytest.approx(1, abs=1e-4)
    assert (high.difference or 0) < (low.difference or 0) < 0
    assert high.rmse_outside == 0


def test_what_is_kept_against_loops() -> None:
    images, masks = painted(4, first=500, size=6), torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    views = (images.images.float() + 30 * normal(4, 3, 6, 6)).clamp(0, 255).byte()
    real, made, weights = ((x.double().numpy()) for x in (images.images / 255, views / 255, masks[:, 0]))
    middle = real.mean(axis=(0, 2, 3))
    alike, wrong = np.zeros((2, 4)), np.zeros((2, 4))
    for i, y, x in product(range(4), range(6), range(6)):
        a, b = real[i, :, y, x] - middle, made[i, :, y, x] - middle
        for side, weight in enumerate((weights[i, y, x], 1 - weights[i, y, x])):
            alike[side, i] += weight * (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
            wrong[side, i] += weight * ((a - b) ** 2).mean()
    total = np.stack([weights.sum(axis=(1, 2)), (1 - weights).sum(axis=(1, 2))])
    alike, wrong = alike / total, np.sqrt(wrong / total)
    difference = alike[0] - alike[1]
    expected = Kept(
        alike[0].mean(),
        alike[1].mean(),
        difference.mean(),
        difference.std(ddof=1) / 2,
        wrong[0].mean(),
        wrong[1].mean(),
    )
    assert Photographs(Colour(), images, masks).kept(views) == pytest.approx(expected, abs=1e-5)


def test_limits_of_what_is_kept() -> None:
    others, repainted = photographs().limits().values()
    assert others.outside < 0.5
    assert repainted.inside == pytest.approx(1, abs=1e-4)
    assert repainted.outside == pytest.approx(others.outside, abs=0.15)
    assert repainted.difference > 0.5
