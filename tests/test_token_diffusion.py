"""The small generator: its code against slow regressions, its guess against an integral, its loss by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import Painted
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.generators.code import fit_code, fold
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.token_diffusion import NOTHING_KNOWN, NetworkSettings

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, condition_from=(0, 2), channels=4)
FIT = FitSettings(network=NetworkSettings(widths=(16, 32), layers=1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    source = Painted(40)
    chance = torch.Generator().manual_seed(0)
    pixels = torch.stack([pil_to_tensor(source.image(i)) for i in range(len(source))]) / 255
    return (pixels + 0.1 * torch.randn(pixels.shape, generator=chance)).clamp(0, 1)


@pytest.fixture(scope="module")
def model(images: Tensor) -> TokenDiffusion:
    torch.manual_seed(0)
    made = TokenDiffusion(TokenEncoder(ENCODER), FIT).train()
    fit_code(made.encoder, images.split(16))
    return made


@torch.no_grad()
def rows(model: TokenDiffusion, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, pixels, code and sketch of every patch, in float64."""
    _, seen = model.encoder.features(images)
    code = model.encoder.project(seen)
    found = (seen, fold(images, model.encoder.stride), code, model.encoder.sketch(code))
    return tuple(x.movedim(1, -1).flatten(0, 2).double() for x in found)  # type: ignore[return-value]


@pytest.mark.parametrize("patch", [2, 4])
def test_folded_images_unfold_to_themselves(patch: int) -> None:
    images = torch.rand(2, 3, 8, 8)
    folded = fold(images, patch)
    assert folded.shape == (2, 3 * patch**2, 8 // patch, 8 // patch)
    assert torch.allclose(F.pixel_shuffle(folded, patch) / 2 + 0.5, images, atol=1e-6)


def test_codes_are_standardised_and_uncorrelated(model: TokenDiffusion, images: Tensor) -> None:
    _, _, code, _ = rows(model, images)
    assert code.mean(dim=0).abs().max() < 1e-3
    assert torch.allclose(torch.cov(code.T, correction=0), torch.eye(4).double(), atol=2e-3)


def test_the_sketch_is_the_best_that_four_numbers_can_do(model: TokenDiffusion, images: Tensor) -> None:
    """Against least squares in full and the singular values of what it explains; and another code does worse."""
    seen, pixels, code, sketch = (x.numpy() for x in rows(model, images))
    f, y = seen - seen.mean(axis=0), pixels - pixels.mean(axis=0)
    explained = f @ np.linalg.lstsq(f, y, rcond=None)[0]
    u, s, v = np.linalg.svd(explained, full_matrices=False)
    best = (u[:, :4] * s[:4]) @ v[:4]
    error = float(np.square(pixels - sketch).mean())
    assert error == pytest.approx(float(np.square(y - best).mean()), rel=1e-3)
    assert error == pytest.approx(float(model.encoder.residual), rel=1e-3)
    assert error < 0.5 * float(np.square(y).mean())
    other = f[:, :4]
    assert np.square(y - other @ np.linalg.lstsq(other, y, rcond=None)[0]).mean() > error
    again = code @ np.linalg.lstsq(code, y, rcond=None)[0]
    assert np.square(y - again).mean() == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(("t", "level"), [(0, 0), (300, 0), (300, 400), (999, 100), (700, 900), (500, NOTHING_KNOWN)])
def test_the_guess_is_the_posterior_mean_of_three_observations(model: TokenDiffusion, t: int, level: int) -> None:
    """One value of the pixels by summing over a fine grid: prior times likelihoods of x_t and of the noised code."""
    denoiser, chance = model.denoiser, torch.Generator().manual_seed(1)
    x, code = torch.randn(1, 48, 2, 2, generator=chance), torch.randn(1, 4, 2, 2, generator=chance)
    code = torch.zeros_like(code) if level == NOTHING_KNOWN else code
    with torch.no_grad():
        guess, spread = denoiser.guess(x, torch.tensor([t]), code, torch.tensor([level]))
        sketch, weight = denoiser.encoder.sketch(code), denoiser.encoder.sketch.weight
        mean = float(denoiser.encoder.sketch.bias[7])  # type: ignore[index]
        seen, said = float(x[0, 7, 1, 0]), float(sketch[0, 7, 1, 0]) - mean
    residual, sketched = float(denoiser.encoder.residual), float(weight.square().sum(dim=1).mean())
    abar = float(model.pixels.alphas_cumprod[t])
    grid = np.linspace(-4, 4, 400_001)
    log = -((grid - mean) ** 2) / (2 * (residual + sketched)) - (seen - abar**0.5 * grid) ** 2 / (2 * (1 - abar))
    if level != NOTHING_KNOWN:
        kept = float(model.noising.alphas_cumprod[level])
        log -= (mean + said / kept**0.5 - grid) ** 2 / (2 * (residual + sketched * (1 - kept) / kept))
    weights = np.exp(log - log.max())
    expected = float((weights * grid).sum() / weights.sum())
    deviation = float(np.sqrt((weights * (grid - expected) ** 2).sum() / weights.sum()))
    assert float(guess[0, 7, 1, 0]) == pytest.approx(expected, abs=2e-4)
    assert float(spread) == pytest.approx(deviation, rel=2e-3)


def test_an_untrained_network_changes_nothing(model: TokenDiffusion, images: Tensor) -> None:
    t, level = torch.tensor([999, 400]), torch.tensor([0, NOTHING_KNOWN])
    x, code = torch.randn(2, 48, 8, 8), model.encoder(images[:2])[1]
    with torch.no_grad():
        assert torch.equal(model.denoiser(x, t, code, level), model.denoiser.guess(x, t, code, level)[0])


def test_the_loss_is_the_error_of_clean_pixels_times_a_bounded_weight(images: Tensor) -> None:
    torch.manual_seed(0)
    model = TokenDiffusion(TokenEncoder(ENCODER), replace(FIT, snr=30.0)).train()
    fit_code(model.encoder, images.split(16))
    torch.nn.init.normal_(model.denoiser.unet.conv_out.weight, std=0.1)
    with torch.no_grad():
        torch.manual_seed(5)
        losses = model(images[:12])
        torch.manual_seed(5)
        code, level = model.noised_code(images[:12])
        clean = fold(images[:12], 4)
        t = torch.randint(0, 1000, (12,))
        x = model.pixels.add_noise(clean, torch.randn_like(clean), t)
        error = (model.denoiser(x, t, code, level) - clean).square().mean(dim=(1, 2, 3))
        _, spread = model.denoiser.guess(x, t, code, level)
    precision = 1 / spread.flatten().square()
    assert bool((precision > 30).any() & (precision < 30).any())
    assert torch.allclose(losses, error * precision.clamp(max=30), rtol=1e-4)


def test_dropped_codes_are_zero_and_say_so(images: Tensor) -> None:
    torch.manual_seed(0)
    model = TokenDiffusion(TokenEncoder(ENCODER), replace(FIT, dropout=0.5, highest_level=0)).train()
    with torch.no_grad():
        code, level = model.noised_code(images.repeat(2, 1, 1, 1))
        _, whole = model.encoder(images.repeat(2, 1, 1, 1))
    dropped = level == NOTHING_KNOWN
    assert 20 < int(dropped.sum()) < 60
    assert float(code[dropped].abs().max()) == 0.0
    assert bool((level[~dropped] == 0).all())
    assert float((code - whole)[~dropped].abs().max()) < 0.05, "level 0 has hardly any noise"
