"""A small unCLIP in pixels: a UNet conditioned on noised grids of features and on the levels of that noise.

As in unCLIP (Ramesh et al., 2022; Stable unCLIP), the condition is an image embedding with noise added by a
cosine schedule, and the network is told the level. Unlike there, the embedding has two parts that keep places: the
gist, coarse and deep, and the detail, from which a sketch of the pixels can be drawn without any training. The detail
takes more noise than the gist, so that a rising level takes away how an image looks before what it shows. The network
only learns what the sketch and the noisy pixels together do not say, which makes it useful after minutes on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.token_encoder import (
    Code,
    FrozenTokenEncoder,
    TokenEncoder,
    load_token_encoder,
    save_token_encoder,
)
from genview.errors import UserError
from genview.store import write_json

NOTHING_KNOWN = 1000
"""Level given with an all-zero condition: the unconditional half of guidance."""
FAINTEST = 1e-8
"""Least ᾱ of the detail that the guess reckons with: less would be 0/0."""
LAYOUT = "GenviewTokenDiffusion"


@dataclass(frozen=True)
class NetworkSettings:
    """Widths of the UNet's resolutions from fine to coarse, and residual blocks at each.

    Each block of patch×patch pixels is folded into channels; `patch` divides the stride of the code.
    """

    widths: tuple[int, ...] = (48, 96, 192)
    layers: int = 1
    patch: int = 2


class NoisedCode(NamedTuple):
    """Detail B×D×h×w and gist B×G×h'×w' with noise, and ᾱ of the detail's noise, B×1×h×w: 1 − ᾱ is its variance."""

    detail: Tensor
    gist: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Sampling:
    """How a network is sampled: in how many steps, as a student of `distil` or not, and the guidance built into it.

    `model_index.json` keeps it. A student takes steps of DDIM, and no other number of them.
    """

    steps: int = 2
    distilled: bool = False
    guidance: float = 1.0


def create_unet(settings: NetworkSettings, encoder: TokenEncoder) -> Any:
    """Create diffusers' UNet for folded noisy pixels, the guess at them, and the code; its first output is zero.

    Raises:
        UserError: `patch` does not divide the stride of the code.
    """
    from diffusers import UNet2DModel

    if settings.patch < 1 or encoder.stride % settings.patch:
        raise UserError(
            f"fit.network.patch is {settings.patch}, which does not divide the {encoder.stride} pixels of a position "
            "of the detail: write a divisor, or name deeper levels in encoder.detail_from."
        )
    depth, folded = len(settings.widths), 3 * settings.patch**2
    unet: Any = UNet2DModel(
        in_channels=2 * folded + encoder.settings.detail_channels + encoder.settings.gist_channels + 1,
        out_channels=folded,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        attention_head_dim=32,
        norm_num_groups=16,
        class_embed_type="timestep",
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


class Denoiser(nn.Module):
    """x̂₀ = guess + spread · UNet(x_t, guess, code; t, level): the network corrects what can be guessed without it.

    The preconditioning of Karras et al. (2022, section 5) for two noisy observations of the pixels x₀ instead of
    one, x_t and the sketch. With sketch(detail) = m + S·detail, the guess weighs three terms by their precision: the
    mean m, of variance s² + r² over the images (s² the sketch's, r² the residual); x_t / √ᾱ_t, of noise variance
    (1 − ᾱ_t) / ᾱ_t; and m + S·detail / √ᾱ_d, of noise variance r² + s² (1 − ᾱ_d) / ᾱ_d. `spread` is the standard
    deviation that these precisions leave, so the network's target has about unit variance at every t and level.
    """

    kept_pixels: Tensor

    def __init__(self, encoder: TokenEncoder, unet: Any) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet
        self.patch = int((unet.config.out_channels // 3) ** 0.5)
        self.register_buffer("kept_pixels", schedules()[0].alphas_cumprod, persistent=False)

    def forward(self, x: Tensor, t: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """Clean images for noisy ones x B×3×S×S at times t B, in [-1, 1]; the noised code and the gist's levels B."""
        guess, spread = self.guess(x, t, code)
        return guess + spread * self.correction(x, guess, t, code, level)

    def correction(self, x: Tensor, guess: Tensor, t: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """What the network adds to the guess, in units of the spread; B×3×S×S."""
        shown = [F.pixel_unshuffle(images, self.patch) for images in (x, guess)]
        side = shown[0].shape[-1]
        shown += [_spread_out(part, side) for part in (code.detail, code.gist, code.kept.sqrt())]
        found: Tensor = self.unet(torch.cat(shown, dim=1), t, class_labels=level).sample
        return F.pixel_shuffle(found.float(), self.patch)

    def guess(self, x: Tensor, t: Tensor, code: NoisedCode) -> tuple[Tensor, Tensor]:
        """Precision-weighted mean of what is known, B×3×S×S, and the standard deviation left, B×1×S×S; float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self._guess(x.float(), t, code.detail.float(), code.kept.float().clamp(min=FAINTEST))

    def _guess(self, x: Tensor, t: Tensor, detail: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        sketch, residual, stride = self.encoder.sketch, self.encoder.residual, self.encoder.stride
        assert sketch.bias is not None
        mean = sketch.bias.view(1, -1, 1, 1)
        sketched = sketch.weight.square().sum(dim=1).mean()
        abar = self.kept_pixels[t].view(-1, 1, 1, 1)
        of_pixels = abar / (1 - abar)
        of_code = 1 / (residual + sketched * (1 - kept) / kept)
        precision = of_pixels + of_code + 1 / (residual + sketched)
        from_pixels = F.pixel_unshuffle(x, stride) * abar.sqrt() / (1 - abar) - of_pixels * mean
        from_code = of_code * (sketch(detail) - mean) / kept.sqrt()
        guess = F.pixel_shuffle(mean + (from_pixels + from_code) / precision, stride)
        return guess, _spread_out(precision.rsqrt(), x.shape[-1])


def noised(code: Code, level: Tensor, detail_level: Tensor, noise: Code, alphas_cumprod: Tensor) -> NoisedCode:
    """Noise a code as unCLIP does its embedding: √ᾱ · code + √(1 − ᾱ) · noise, in float32.

    Args:
        code: detail B×D×h×w and gist B×G×h'×w'.
        level: of the gist, B.
        detail_level: B×1×h×w, or B×1×1×1 where it is the same everywhere.
        noise: standard normal, of the shapes of the code.
        alphas_cumprod: ᾱ, one value a level.
    """
    of_gist, of_detail = alphas_cumprod[level].view(-1, 1, 1, 1), alphas_cumprod[detail_level]
    detail, gist = (
        kept.sqrt() * part.float() + (1 - kept).sqrt() * more
        for kept, part, more in zip((of_detail, of_gist), code, noise, strict=True)
    )
    return NoisedCode(detail, gist, of_detail.expand(-1, 1, *code.detail.shape[2:]))


def _spread_out(grid: Tensor, side: int) -> Tensor:
    """Repeat each position of a grid until it has `side` of them; a grid that has stays as it is."""
    return grid if grid.shape[-1] == side else F.interpolate(grid, (side, side))


def schedules() -> tuple[Any, Any]:
    """Return the scheduler of the pixels (predicts x₀, zero terminal SNR) and that of the condition's noise."""
    from diffusers import DDIMScheduler, DDPMScheduler

    pixels = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return pixels, DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def save_layout(folder: Path, encoder: TokenEncoder, unet: Any, sampling: Sampling = Sampling()) -> None:
    """Write encoder, UNet (half precision) and schedulers in the layout of a diffusers pipeline."""
    pixels, condition = schedules()
    save_token_encoder(encoder, folder / "encoder")
    unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    pixels.save_pretrained(folder / "scheduler")
    condition.save_pretrained(folder / "image_noising_scheduler")
    index = {
        "_class_name": LAYOUT,
        "encoder": ["genview", "TokenEncoder"],
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        "sampling": asdict(sampling),
    }
    write_json(folder / "model_index.json", index)


def load_layout(folder: Path, size: int) -> tuple[FrozenTokenEncoder, Denoiser, Any, Any]:
    """Read encoder, denoiser (float32), pixel scheduler and condition scheduler.

    Raises:
        UserError: the folder was not made by `genview fit-generator`, or does not suit the size.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    try:
        found = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder} holds no generator ({error}). generator.weights takes 'natural' or the --out folder of "
            "`genview fit-generator`; for Stable unCLIP use kind: unclip."
        ) from error
    if found != LAYOUT:
        raise UserError(
            f"{folder} holds a '{found}', not a '{LAYOUT}'. For Stable unCLIP write kind: unclip instead of embedded."
        )
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
        pixels = DDIMScheduler.from_pretrained(folder / "scheduler")
        condition = DDPMScheduler.from_pretrained(folder / "image_noising_scheduler")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    encoder = load_token_encoder(folder / "encoder", size)
    denoiser = Denoiser(encoder.model, unet)
    step = denoiser.patch * 2 ** (len(unet.config.block_out_channels) - 1)
    if size <= 0 or size % step:
        raise UserError(f"size {size} does not suit the generator in {folder}: take a multiple of {step} pixels.")
    return encoder, denoiser, pixels, condition


def read_sampling(folder: Path) -> Sampling:
    """Read how the network of a checked layout is sampled; what older layouts do not say is as in `Sampling()`.

    Raises:
        UserError: it is damaged.
    """
    file = folder / "model_index.json"
    try:
        return Sampling(**json.loads(file.read_text()).get("sampling", {}))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} does not say how its network is sampled ({error}). Make it anew.") from error
