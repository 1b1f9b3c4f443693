"""Looks against torchvision's transforms, and the looks of a device against those of a processor."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as known

from conftest import Painted
from genview.images import ImageFile, decode
from genview.pairs import Look, Looks, Pairs, PairSettings, ViewRecipe, collate, on_device, pixels, recipe
from genview.pairs.augment import draw_box

WHOLE = (0.0, 0.0, 1.0, 1.0)


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's."""
    return np.asarray(getattr(photographs, name)())


def pictures(side: int = 64) -> list[np.ndarray]:
    """Photographs and worst cases, uint8 3×S×S."""
    found = [photograph("astronaut"), photograph("coffee"), photograph("chelsea"), photograph("rocket")]
    small = [pixels.cut(picture, Look(WHOLE), side)[0] for picture in found]
    chance = np.random.default_rng(0)
    extreme = 255 * chance.integers(0, 2, (3, side, side), dtype=np.uint8)
    grey = np.repeat(chance.integers(0, 256, (1, side, side), dtype=np.uint8), 3, axis=0)
    return [*small, chance.integers(0, 256, (3, side, side), dtype=np.uint8), extreme, grey]


def apart(view: np.ndarray, expected: Tensor) -> tuple[float, float]:
    """Largest and mean difference in levels of 255."""
    difference = np.abs(view.astype(np.float32) - 255 * expected.numpy())
    return float(difference.max()), float(difference.mean())


def beyond(images: Tensor, sigma: float) -> Tensor:
    """Torchvision's blur of images B×3×S×S whose edge goes on beyond it."""
    padded = F.pad(images, (8, 8, 8, 8), mode="replicate")
    blurred: Tensor = known.gaussian_blur(padded, [13, 13], [sigma, sigma])[..., 8:-8, 8:-8]
    return blurred


CHANGES: dict[str, tuple[Callable[[Tensor, float], Tensor], list[float]]] = {
    "brightness": (known.adjust_brightness, [0.2, 0.9, 1.4, 1.8]),
    "contrast": (known.adjust_contrast, [0.2, 0.9, 1.4, 1.8]),
    "saturation": (known.adjust_saturation, [0.2, 0.9, 1.4, 1.8]),
    "hue": (known.adjust_hue, [-0.5, -0.2, -0.03, 0.1, 0.5]),
    "blurred": (beyond, [0.1, 0.5, 1.0, 1.37, 2.0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_torchvisions(name: str) -> None:
    """To rounding on a processor (a blur's weights are rounded too), and in floats on a device."""
    expected_of, numbers = CHANGES[name]
    for picture in pictures():
        images = torch.from_numpy(picture)[None] / 255
        for number in numbers:
            expected = expected_of(images, number)
            worst, mean = apart(getattr(pixels, name)(picture, number), expected[0])
            assert worst <= (3.0 if name == "blurred" else 2.0)
            assert mean <= 0.8
            found = getattr(on_device, name)(images, torch.tensor([[[[number]]]]))
            assert float((found - expected).abs().max()) < (2e-3 if name == "blurred" else 2e-4), (
                "torchvision weighs red by 0.2989"
            )


def test_grey_solarised_and_flipped() -> None:
    for picture in pictures():
        image = Image.fromarray(picture.transpose(1, 2, 0))
        grey = np.asarray(image.convert("L"))
        assert np.abs(pixels.applied(picture, Look(WHOLE, grey=True)).astype(int) - grey).max() <= 1
        solarised = pixels.applied(picture, Look(WHOLE, solarised=True))
        assert np.array_equal(solarised, known.solarize(torch.from_numpy(picture), 128).numpy())
        assert np.array_equal(pixels.applied(picture, Look(WHOLE, flipped=True)), picture[..., ::-1])
        assert np.array_equal(pixels.applied(picture, Look(WHOLE)), picture)


def test_the_blur_blurs() -> None:
    """The authors' fork throws the blurred image away (reference/paper.md 5.1, item 9)."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    assert [pixels.blurred(noise, sigma).std() < noise.std() / 4 for sigma in (0.1, 1.5, 2.0)] == [False, True, True]


def test_changes_follow_one_another_in_the_order_drawn() -> None:
    """Twice as bright and then half, or half and then twice: only the second keeps what is bright."""
    picture = np.full((3, 4, 4), 200, np.uint8)
    picture[:, 0] = 20
    for order in ((0, 1, 2, 3), (1, 0, 2, 3)):
        look = Look(WHOLE, factors=(2.0, 0.5, 1.0, 0.0), order=order)
        expected = torch.from_numpy(picture)[None] / 255
        for place in order[:2]:
            change = (known.adjust_brightness, known.adjust_contrast)[place]
            expected = change(expected, (2.0, 0.5)[place])
        assert apart(pixels.applied(picture, look), expected[0])[0] <= 1.5
        found = on_device.applied(torch.from_numpy(picture)[None], Looks.of([look]))
        assert torch.allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("side", [24, 64, 100])
def test_a_cut_is_pillows_crop_and_resize(side: int) -> None:
    picture, chance = photograph("astronaut"), Random(0)
    for _ in range(10):
        box = draw_box((512, 512), (0.01, 1.0), chance)
        view, cut = pixels.cut(picture, Look(box), side)
        assert cut == box
        at = tuple(round(512 * share) for share in box)
        expected = Image.fromarray(picture).crop(at).resize((side, side), Image.Resampling.BICUBIC)  # type: ignore[arg-type]
        difference = np.abs(view.transpose(1, 2, 0).astype(int) - np.asarray(expected))
        assert difference.mean() < 0.2
        assert difference.max() <= 10, "some corners overshoot by a little more"


def test_a_coarse_view_has_no_fine_structure() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8)[:, None], (64, 128, 3)).reshape(128, 128, 3)
    fine, coarse = (pixels.cut(stripes, Look(WHOLE, coarse=share), 112)[0].std() for share in (0.0, 64 / 224))
    assert coarse < fine / 10


def test_images_shrink_only_as_far_as_every_view_allows() -> None:
    large, small = Look((0.0, 0.0, 1.0, 1.0)), Look((0.0, 0.0, 0.25, 0.5))
    assert pixels.shrink((800, 800), [(large, 50)]) == 8
    assert pixels.shrink((800, 800), [(large, 50), (small, 50)]) == 2
    assert pixels.shrink((800, 800), [(small, 100)]) == 1
    assert pixels.shrink((10, 10), [(large, 224)]) == 1


def test_views_of_a_shrunken_image_are_close_to_those_of_the_whole() -> None:
    chance, found = Random(0), []
    for picture in (photograph("astronaut"), photograph("coffee"), photograph("rocket")):
        Image.fromarray(picture).save(data := io.BytesIO(), "JPEG", quality=90)
        size = ImageFile(data.getvalue()).size
        for side in (32, 64):
            for _ in range(8):
                look = Look(draw_box(size, (0.2, 1.0), chance))
                shrink = pixels.shrink(size, [(look, side)])
                reduced = ImageFile(data.getvalue()).pixels(shrink)
                assert reduced.shape[1] == -(-size[0] // shrink)
                view, box = pixels.cut(reduced, look, side)
                whole, _ = pixels.cut(np.array(decode(data.getvalue())), Look(box), side)
                found.append(float(((view.astype(float) - whole) ** 2).mean()))
    decibels = 10 * np.log10(255**2 / np.maximum(found, 1e-3))
    assert decibels.min() > 30
    assert decibels.mean() > 38


def measures(views: Tensor) -> dict[str, Tensor]:
    """Mean, spread, saturation and gradient energy of views B×3×S×S in [0, 1]: B values each."""
    edges = (views.diff(dim=-1).square().mean(dim=(1, 2, 3)) + views.diff(dim=-2).square().mean(dim=(1, 2, 3))).sqrt()
    saturation = (views.amax(dim=1) - views.amin(dim=1)).mean(dim=(1, 2))
    return {
        "mean": views.mean(dim=(1, 2, 3)),
        "spread": views.std(dim=(1, 2, 3)),
        "saturation": saturation,
        "edges": edges,
    }


def reference(own: ViewRecipe, side: int) -> Callable[[Image.Image], Tensor]:
    """Torchvision's own transforms for a recipe, on Pillow images."""
    steps = [
        v2.RandomResizedCrop(side, scale=own.scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomApply([v2.ColorJitter(*own.jitter)], p=own.jitter_share),
        v2.RandomGrayscale(own.grey),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=own.blur),
        v2.RandomApply([v2.RandomSolarize(128, 1.0)], p=own.solarise),
        v2.RandomHorizontalFlip(own.flip),
        v2.PILToTensor(),
    ]
    transform: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return transform


def same_distributions(picture: np.ndarray, own: ViewRecipe, side: int, count: int) -> None:
    """Many views by torchvision, by a processor and by a device agree in distribution (Kolmogorov–Smirnov)."""
    chance = Random(1)
    torch.manual_seed(1)
    image, transform = Image.fromarray(picture), reference(own, side)
    expected = measures(torch.stack([transform(image) for _ in range(count)]) / 255)
    looks = [own.draw(image.size, chance) for _ in range(count)]
    cuts = [pixels.cut(picture, look, side)[0] for look in looks]
    here = torch.from_numpy(np.stack([pixels.applied(*both) for both in zip(cuts, looks, strict=True)])) / 255
    there = on_device.applied(torch.from_numpy(np.stack(cuts)), Looks.of(looks))
    assert float((here - there).abs().mean()) < 1 / 255
    for found in (measures(here), measures(there)):
        for name, values in expected.items():
            both = torch.cat([values, found[name]]).sort().values
            below = [torch.searchsorted(v.sort().values, both, right=True) / count for v in (values, found[name])]
            assert float((below[0] - below[1]).abs().max()) < 1.95 * (2 / count) ** 0.5, name  # one in a thousand


@pytest.mark.parametrize("number", [0, 1])
def test_views_are_distributed_as_torchvisions(number: int) -> None:
    same_distributions(photograph("coffee"), recipe("byol").full[number], 32, 400)


def test_views_of_real_images_are_distributed_as_torchvisions(data: Path) -> None:
    with tarfile.open(next(data.glob("imagenette224/val-*.tar"))) as tar:
        members = [tar.extractfile(member) for member in tar.getmembers()[:300:100]]
        real = [np.array(decode(member.read())) for member in members if member is not None]
    for picture in real:
        same_distributions(picture, recipe("simclr").full[0], 48, 300)


def test_a_batch_on_the_device_is_each_of_its_views_alone() -> None:
    chance = Random(2)
    looks = [recipe("byol").full[n % 2].draw((64, 64), chance) for n in range(24)]
    views = torch.from_numpy(np.stack([pictures(32)[n % 7] for n in range(24)]))
    together = on_device.applied(views, Looks.of(looks))
    for n, look in enumerate(looks):
        alone = on_device.applied(views[n : n + 1], Looks.of([look]))
        assert torch.allclose(alone[0], together[n], atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_looks_on_cuda_are_those_on_a_processor() -> None:
    chance = Random(3)
    looks = Looks.of([recipe("byol").full[n % 2].draw((64, 64), chance) for n in range(14)])
    views = torch.from_numpy(np.stack(pictures(32) * 2))
    assert torch.allclose(on_device.applied(views.cuda(), looks).cpu(), on_device.applied(views, looks), atol=1e-4)


def test_a_batch_whose_looks_are_on_the_device_can_be_looked_at() -> None:
    late = Pairs(Painted(4), PairSettings(recipe="small", size=16), seed=0, looks_on_device=True)
    batch = collate([late[0, i] for i in range(4)])
    seen = batch.looked(torch.device("cpu"))
    assert not seen.looks
    for view, shown in zip(seen.views, batch.shown(torch.device("cpu")), strict=True):
        assert view.dtype == torch.uint8
        assert float((view.float() / 255 - shown).abs().max()) < 0.003
    assert any(not torch.equal(x, y) for x, y in zip(seen.views, batch.views, strict=True))
