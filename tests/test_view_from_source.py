"""Image-to-image with the embedded generator's network, on an untrained one, whose guess is known in closed form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.generators import EmbeddedSettings
from genview.generators.code import fit_code
from genview.generators.sampler import noise_for
from genview.generators.token_diffusion import NetworkSettings, create_unet, save_layout, schedules
from judging import painted

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import from_source
from from_source import FromSource, begin
from judge import rmse

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
SIZE = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    encoder, folder = TokenEncoder(ENCODER), tmp_path_factory.mktemp("untrained")
    fit_code(encoder, (painted(64, size=SIZE).images / 255).split(32))
    save_layout(folder, encoder, create_unet(NetworkSettings((16, 32)), encoder))
    return str(folder)


def views(generator: FromSource, images: Tensor, levels: list[int], seeds: list[int]) -> Tensor:
    condition = generator.encoder.encode(images / 255).embedding
    return generator.sample(condition, torch.tensor(levels), torch.ones(len(levels)), seeds)


def test_it_begins_where_the_packages_own_image_to_image_does() -> None:
    assert [begin(level) for level in (0, 100, 400, 999)] == [299, 369, 579, 998]


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_by_hand(weights: str, steps: int) -> None:
    """The network as it is created adds nothing to the posterior mean of independent pixels; steps are DDIM's."""
    generator, images = FromSource(EmbeddedSettings(weights=weights, size=SIZE, steps=steps), told=False), painted(3)
    found = views(generator, images.images, [200] * 3, [5, 6, 7])
    encoder, abar = generator._denoiser.encoder, schedules()[0].alphas_cumprod.double()
    mean = encoder.sketch.bias.detach().double().view(1, -1, 1, 1)  # type: ignore[union-attr]
    variance = float(encoder.residual + encoder.sketch.weight.square().sum(dim=1).mean())
    clean = F.pixel_unshuffle(images.images.double() / 255 * 2 - 1, encoder.stride)
    noise = F.pixel_unshuffle(noise_for([5, 6, 7], (3, SIZE, SIZE), "latent").double(), encoder.stride)

    def guess(x: Tensor, kept: Tensor) -> Tensor:
        gain = kept.sqrt() * variance / (kept * variance + 1 - kept)
        return (mean + gain * (x - kept.sqrt() * mean)).clamp(-1, 1)

    kept = abar[439]
    x = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    if steps == 2:
        later, said = abar[219], guess(x, kept)
        x = later.sqrt() * said + ((1 - later) / (1 - kept)).sqrt() * (x - kept.sqrt() * said)
        kept = later
    expected = (F.pixel_shuffle(guess(x, kept), encoder.stride) + 1) * 127.5
    assert float((found - expected).abs().max()) < 0.6


def test_told_of_the_source_it_stays_nearer_and_strays_with_the_level(weights: str) -> None:
    settings, images = EmbeddedSettings(weights=weights, size=SIZE, pace=1.0), painted(20).images
    told, untold = (
        [rmse(views(FromSource(settings, told=told), images, [level] * 20, list(range(20))), images).mean()
         for level in (0, 200, 400)]
        for told in (True, False)
    )  # fmt: skip
    assert 0 < told[0] < told[1] < told[2]
    assert untold[0] < untold[1] < untold[2]
    assert all(a < b for a, b in zip(told, untold, strict=True))


@pytest.mark.parametrize("told", [True, False])
def test_a_row_depends_on_its_own_level_and_seed_alone(weights: str, told: bool) -> None:
    generator, images = FromSource(EmbeddedSettings(weights=weights, size=SIZE), told=told), painted(4).images
    mixed = views(generator, images, [400, 0, 400, 100], [1, 2, 3, 4])
    for i, level in enumerate((400, 0, 400, 100)):
        alone = views(generator, images[i : i + 1], [level], [i + 1])[0]
        assert float((alone.float() - mixed[i].float()).abs().max()) <= 1
    assert not torch.equal(mixed, views(generator, images, [400, 0, 400, 100], [1, 2, 3, 5]))


def test_begun_with_hardly_anything_of_the_source_it_is_the_embedded_generator(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_source, "begin", lambda _level: 998)
    settings, images = EmbeddedSettings(weights=weights, size=SIZE), painted(4).images
    embedded = settings.load("cpu")
    condition = embedded.encoder.encode(images / 255).embedding
    level, seeds = torch.tensor([0, 100, 200, 400]), [1, 2, 3, 4]
    expected = embedded.sample(condition, level, torch.ones(4), seeds)
    found = views(FromSource(settings, told=True), images, level.tolist(), seeds)
    assert float(rmse(found, expected).max()) < 0.01
    assert float(rmse(expected, images).min()) > 0.02
