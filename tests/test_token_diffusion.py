"""The small generator: its code against slow regressions, its guess against an integral, its loss by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import Painted
from genview.encoders import BackboneSettings, Code, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.foreground import CentrePrior
from genview.generators.code import fit_code, fold
from genview.generators.embedded import detail_levels
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.token_diffusion import NOTHING_KNOWN, NetworkSettings, NoisedCode, create_unet, noised

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
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
def rows(encoder: TokenEncoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fine features, pixels, detail and sketch of every patch, in float64."""
    seen = encoder.features(images).fine
    detail = encoder.detail(seen)
    found = (seen, fold(images, encoder.stride), detail, encoder.sketch(detail))
    return tuple(x.movedim(1, -1).flatten(0, 2).double() for x in found)  # type: ignore[return-value]


@pytest.mark.parametrize("patch", [2, 4])
def test_folded_images_unfold_to_themselves(patch: int) -> None:
    images = torch.rand(2, 3, 8, 8)
    folded = fold(images, patch)
    assert folded.shape == (2, 3 * patch**2, 8 // patch, 8 // patch)
    assert torch.allclose(F.pixel_shuffle(folded, patch) / 2 + 0.5, images, atol=1e-6)


@torch.no_grad()
def test_codes_are_standardised_and_uncorrelated(model: TokenDiffusion, images: Tensor) -> None:
    for part in model.encoder(images)[1]:
        values = part.movedim(1, -1).flatten(0, 2).double()
        assert values.mean(dim=0).abs().max() < 1e-3
        assert torch.allclose(torch.cov(values.T, correction=0), torch.eye(part.shape[1]).double(), atol=2e-3)


@torch.no_grad()
def test_the_gist_loses_least_of_the_deep_features(model: TokenDiffusion, images: Tensor) -> None:
    """Against the singular values of the centred features: no six directions explain more of them."""
    deep = model.encoder.features(images).deep.movedim(1, -1).flatten(0, 2).double().numpy()
    gist = model.encoder(images)[1].gist.movedim(1, -1).flatten(0, 2).double().numpy()
    deep = deep - deep.mean(axis=0)
    left = deep - gist @ np.linalg.lstsq(gist, deep, rcond=None)[0]
    least = np.linalg.svd(deep, compute_uv=False)[6:]
    assert np.square(left).sum() == pytest.approx(np.square(least).sum(), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("inside_out", [False, True])
def test_the_last_of_the_gist_points_to_the_middle(images: Tensor, *, inside_out: bool) -> None:
    """Whatever lies in the middle: images whose middle and border change places turn it round."""
    torch.manual_seed(0)
    encoder, shown = TokenEncoder(ENCODER).eval(), images.roll((16, 16), dims=(2, 3)) if inside_out else images
    fit_code(encoder, shown.split(16))
    scores = encoder(shown)[1].gist[:, -1]
    prior = CentrePrior((scores.shape[1], scores.shape[2]))
    prior.add(scores.flatten(1))
    sign, evidence = prior.decide()
    assert sign == 1
    assert evidence > 1


def test_the_sketch_is_the_best_that_four_numbers_can_do(model: TokenDiffusion, images: Tensor) -> None:
    """Against least squares in full and the singular values of what it explains; and another code does worse."""
    seen, pixels, code, sketch = (x.numpy() for x in rows(model.encoder, images))
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


def widened(model: TokenDiffusion, kept: int) -> TokenEncoder:
    """An encoder with six channels of detail, the first `kept` of them the model's, and the model's gist."""
    wider = TokenEncoder(replace(ENCODER, detail_channels=6)).eval()
    for mine, theirs in ((wider.trunk, model.encoder.trunk), (wider.gist, model.encoder.gist)):
        mine.load_state_dict(theirs.state_dict())
    for name, value in model.encoder.detail.state_dict().items():
        wider.detail.get_parameter(name)[:kept] = value[:kept]
    return wider


@torch.no_grad()
def test_more_channels_say_what_the_kept_ones_leave(model: TokenDiffusion, images: Tensor) -> None:
    """Two beside the best four are as good as the best six, and the four and the gist are what they were."""
    wider, six, four = widened(model, 4), widened(model, 0), model.encoder
    fit_code(wider, images.split(16), kept=4)
    fit_code(six, images.split(16))
    for part in ("detail", "gist"):
        for name, value in getattr(four, part).state_dict().items():
            assert torch.equal(getattr(wider, part).get_parameter(name)[: len(value)], value)
    code = wider(images)[1].detail.movedim(1, -1).flatten(0, 2).double()
    assert torch.allclose(torch.cov(code.T, correction=0), torch.eye(6).double(), atol=2e-3)
    assert float(wider.residual) == pytest.approx(float(six.residual), rel=1e-3)
    assert float(wider.residual) < 0.95 * float(four.residual)


@torch.no_grad()
def test_more_channels_for_other_images_still_give_the_best_sketch(model: TokenDiffusion, images: Tensor) -> None:
    """There the kept channels have another mean and other variances, and are correlated."""
    encoder, others = widened(model, 4), (images**2).flip(1)
    fit_code(encoder, others.split(16), kept=4)
    _, pixels, code, sketch = (x.numpy() for x in rows(encoder, others))
    shown = np.column_stack([code, np.ones(len(code))])
    best = float(np.square(pixels - shown @ np.linalg.lstsq(shown, pixels, rcond=None)[0]).mean())
    assert float(np.square(pixels - sketch).mean()) == pytest.approx(best, rel=1e-3)
    assert best == pytest.approx(float(encoder.residual), rel=1e-3)


@pytest.mark.parametrize(("t", "kept"), [(0, 1.0), (300, 1.0), (300, 0.6), (999, 0.9), (700, 0.02), (500, 0.0)])
def test_the_guess_is_the_posterior_mean_of_three_observations(model: TokenDiffusion, t: int, kept: float) -> None:
    """One value of the pixels by summing over a fine grid: prior times likelihoods of x_t and the noised detail."""
    denoiser, chance = model.denoiser, torch.Generator().manual_seed(1)
    x, detail = torch.randn(1, 3, 8, 8, generator=chance), torch.randn(1, 4, 2, 2, generator=chance)
    everywhere = torch.rand(1, 1, 2, 2, generator=chance)
    everywhere[0, 0, 1, 0] = kept
    detail = detail * (everywhere > 0)
    with torch.no_grad():
        guess, spread = denoiser.guess(x, torch.tensor([t]), NoisedCode(detail, torch.zeros(()), everywhere))
        sketch, weight = denoiser.encoder.sketch(detail), denoiser.encoder.sketch.weight
        mean = float(denoiser.encoder.sketch.bias[7])  # type: ignore[index]
        seen, said = float(x[0, 0, 5, 3]), float(sketch[0, 7, 1, 0]) - mean
    residual, sketched = float(denoiser.encoder.residual), float(weight.square().sum(dim=1).mean())
    abar = float(model.pixels.alphas_cumprod[t])
    grid = np.linspace(-4, 4, 400_001)
    log = -((grid - mean) ** 2) / (2 * (residual + sketched)) - (seen - abar**0.5 * grid) ** 2 / (2 * (1 - abar))
    if kept:
        log -= (mean + said / kept**0.5 - grid) ** 2 / (2 * (residual + sketched * (1 - kept) / kept))
    weights = np.exp(log - log.max())
    expected = float((weights * grid).sum() / weights.sum())
    deviation = float(np.sqrt((weights * (grid - expected) ** 2).sum() / weights.sum()))
    assert float(guess[0, 0, 5, 3]) == pytest.approx(expected, abs=2e-4)
    assert float(spread[0, 0, 5, 3]) == pytest.approx(deviation, rel=2e-3)


@torch.no_grad()
def test_an_untrained_network_changes_nothing(model: TokenDiffusion, images: Tensor) -> None:
    t, x = torch.tensor([999, 400]), torch.randn(2, 3, 32, 32)
    code, level = model.noised_code(images[:2])
    assert torch.equal(model.denoiser(x, t, code, level), model.denoiser.guess(x, t, code)[0])


def test_noise_on_a_code_by_hand() -> None:
    code, noise = Code(torch.ones(2, 1, 2, 2), torch.ones(2, 3, 1, 1)), Code(*(torch.full((1,), 2.0),) * 2)
    level, of_detail = torch.tensor([0, 1]), torch.tensor([[[[1, 0], [2, 2]]], [[[1, 1], [1, 1]]]])
    found = noised(code, level, of_detail, noise, torch.tensor([1.0, 0.64, 0.0]))
    assert found.gist[:, 0, 0, 0].tolist() == pytest.approx([1, 0.8 + 2 * 0.6])
    assert found.detail[0, 0].flatten().tolist() == pytest.approx([2.0, 1.0, 2.0, 2.0])
    assert found.kept[0, 0].flatten().tolist() == pytest.approx([0.64, 1, 0, 0])


def test_the_foreground_is_spared_and_its_image_gets_as_much_as_others() -> None:
    """Against a loop over the places; the gist's grid is as fine as the detail's, so that nothing is interpolated."""
    gist = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    gist[2] = 0.7  # an image that is the same everywhere
    code, level = Code(torch.zeros(3, 2, 4, 4), gist), torch.tensor([100, 400, 300])
    found = detail_levels(code, level, pace=2.0, spare=1.5)
    for i in range(3):
        members = [[1 / (1 + np.exp(-2 * (float(g) - 0.25))) for g in row] for row in gist[i, -1]]
        mean = np.mean(members)
        expected = [[2 * int(level[i]) * (1 + 3 * (mean - m)) for m in row] for row in members]
        assert torch.allclose(found[i, 0].double(), torch.tensor(expected).double(), rtol=1e-5)
    assert torch.allclose(found.mean(dim=(1, 2, 3)), 2.0 * level)
    assert torch.allclose(found[2], torch.tensor(600.0))
    order = gist[1, -1].flatten().argsort()
    assert (found[1].flatten()[order].diff() < 0).all(), "the likelier the foreground, the less"


def test_without_sparing_all_places_get_the_pace() -> None:
    code, level = Code(torch.zeros(2, 2, 8, 8), torch.randn(2, 5, 4, 4)), torch.tensor([0, 300])
    found = detail_levels(code, level, pace=1.5, spare=0.0)
    assert found.shape == (2, 1, 8, 8)
    assert (found == 1.5 * level.view(2, 1, 1, 1)).all()


def test_details_get_at_least_the_noise_of_the_gist(images: Tensor) -> None:
    torch.manual_seed(0)
    model = TokenDiffusion(TokenEncoder(ENCODER), replace(FIT, dropout=0.0)).train()
    with torch.no_grad():
        code, level = model.noised_code(images.repeat(3, 1, 1, 1))
    of_gist = model.noising.alphas_cumprod[level].view(-1, 1, 1, 1)
    assert bool((code.kept <= of_gist + 1e-6).all())
    different = (code.kept.amin(dim=(1, 2, 3)) < code.kept.amax(dim=(1, 2, 3))).float().mean()
    assert 0.15 < float(different) < 0.6, "some have two levels of detail"
    clean = code.kept.amin(dim=(1, 2, 3)) > 0.999
    assert 5 < int(clean.sum()) < 40
    assert bool((level[clean] < 40).all())


def test_the_loss_is_the_error_of_clean_pixels_times_a_bounded_weight(images: Tensor) -> None:
    torch.manual_seed(0)
    model = TokenDiffusion(TokenEncoder(ENCODER), replace(FIT, snr=12.0)).train()
    fit_code(model.encoder, images.split(16))
    torch.nn.init.normal_(model.denoiser.unet.conv_out.weight, std=0.1)
    with torch.no_grad():
        torch.manual_seed(5)
        losses = model(images[:12])
        torch.manual_seed(5)
        code, level = model.noised_code(images[:12])
        clean = images[:12] * 2 - 1
        t = torch.randint(0, 1000, (12,))
        x = model.pixels.add_noise(clean, torch.randn_like(clean), t)
        error = (model.denoiser(x, t, code, level) - clean).square()
        _, spread = model.denoiser.guess(x, t, code)
    precision = 1 / spread.square()
    assert bool((precision > 12).any() & (precision < 12).any())
    assert torch.allclose(losses, (error * precision.clamp(max=12)).mean(dim=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gist_channels": 17}, r"gist_channels is 17, .* have 16 channels: write 1 to 16"),
        ({"detail_channels": 0}, r"detail_channels is 0, "),
    ],
)
def test_a_code_has_no_more_channels_than_there_are_features(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenEncoder(replace(ENCODER, **changes))


@pytest.mark.parametrize("patch", [0, 3, 8])
def test_a_patch_divides_the_stride_of_the_code(model: TokenDiffusion, patch: int) -> None:
    with pytest.raises(UserError, match=rf"patch is {patch}, which does not divide the 4 pixels"):
        create_unet(NetworkSettings(patch=patch), model.encoder)


def test_dropped_codes_are_zero_and_say_so(images: Tensor) -> None:
    torch.manual_seed(0)
    model = TokenDiffusion(TokenEncoder(ENCODER), replace(FIT, dropout=0.5, highest_level=0)).train()
    with torch.no_grad():
        code, level = model.noised_code(images.repeat(2, 1, 1, 1))
        _, whole = model.encoder(images.repeat(2, 1, 1, 1))
    dropped = level == NOTHING_KNOWN
    assert 20 < int(dropped.sum()) < 60
    assert all(float(part[dropped].abs().max()) == 0.0 for part in code)
    assert bool((level[~dropped] == 0).all())
    assert float((code.gist - whole.gist)[~dropped].abs().max()) < 0.05, "level 0 has hardly any noise"
