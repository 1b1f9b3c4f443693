"""A small unCLIP in pixels: a UNet conditioned on a noised grid of features and on the level of that noise.

As in unCLIP (Ramesh et al., 2022; Stable unCLIP), the condition is an image embedding with noise added by a
cosine schedule, and the network is told the level. Unlike there, the embedding keeps a coarse place for every
feature, and a sketch of the pixels can be drawn from it without any training. The network only learns what the
sketch and the noisy pixels together do not say, which is what makes it useful after minutes on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genview.encoders.token_encoder import FrozenTokenEncoder, TokenEncoder, load_token_encoder, save_token_encoder
from genview.errors import UserError
from genview.store import write_json

NOTHING_KNOWN = 1000
"""Level given with an all-zero condition: the unconditional half of guidance."""
LAYOUT = "GenviewTokenDiffusion"


@dataclass(frozen=True)
class NetworkSettings:
    """Widths of the UNet's resolutions from fine to coarse, and residual blocks at each.

    The network works on the grid of the code: each block of stride×stride pixels is folded into channels.
    """

    widths: tuple[int, ...] = (96, 160)
    layers: int = 1


@dataclass(frozen=True)
class Sampling:
    """How a network is sampled: in how many steps, as a student of `distil` or not, and the guidance built into it.

    `model_index.json` keeps it. A student takes steps of DDIM, and no other number of them.
    """

    steps: int = 2
    distilled: bool = False
    guidance: float = 1.0


def create_unet(settings: NetworkSettings, encoder: TokenEncoder) -> Any:
    """Create diffusers' UNet for folded noisy pixels, the guess at them, and the code; its first output is zero."""
    from diffusers import UNet2DModel

    depth, folded = len(settings.widths), encoder.sketch.out_channels
    unet: Any = UNet2DModel(
        in_channels=2 * folded + encoder.settings.channels,
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
    one, x_t and the sketch. With sketch(code) = m + S·code, the guess weighs three terms by their precision: the
    mean m, of variance s² + r² over the images (s² the sketch's, r² the residual); x_t / √ᾱ_t, of noise variance
    (1 − ᾱ_t) / ᾱ_t; and m + S·code / √ᾱ_l, of noise variance r² + s² (1 − ᾱ_l) / ᾱ_l. `spread` is the standard
    deviation that these precisions leave, so the network's target has about unit variance at every t and level.
    """

    kept_pixels: Tensor
    kept_code: Tensor

    def __init__(self, encoder: TokenEncoder, unet: Any) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet
        pixels, noising = schedules()
        self.register_buffer("kept_pixels", pixels.alphas_cumprod, persistent=False)
        self.register_buffer("kept_code", noising.alphas_cumprod, persistent=False)

    def forward(self, x: Tensor, t: Tensor, code: Tensor, level: Tensor) -> Tensor:
        """Clean folded pixels for noisy ones x B×P×h×w at times t B, noised code B×C×h×w and its levels B."""
        guess, spread = self.guess(x, t, code, level)
        return guess + spread * self.correction(x, guess, t, code, level)

    def correction(self, x: Tensor, guess: Tensor, t: Tensor, code: Tensor, level: Tensor) -> Tensor:
        """What the network adds to the guess, in units of the spread."""
        found: Tensor = self.unet(torch.cat([x, guess, code], dim=1), t, class_labels=level).sample
        return found.float()

    def guess(self, x: Tensor, t: Tensor, code: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Precision-weighted mean of what is known, B×P×h×w, and the standard deviation left, B×1×1×1; float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self._guess(x.float(), t, code.float(), level)

    def _guess(self, x: Tensor, t: Tensor, code: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        sketch, residual = self.encoder.sketch, self.encoder.residual
        assert sketch.bias is not None
        mean, sketched = sketch.bias.view(1, -1, 1, 1), sketch.weight.square().sum(dim=1).mean()
        abar = self.kept_pixels[t].view(-1, 1, 1, 1)
        known = (level != NOTHING_KNOWN).view(-1, 1, 1, 1)
        kept = self.kept_code[level.clamp(max=len(self.kept_code) - 1)].view(-1, 1, 1, 1)
        of_pixels = abar / (1 - abar)
        of_code = known / (residual + sketched * (1 - kept) / kept)
        precision = of_pixels + of_code + 1 / (residual + sketched)
        from_pixels = x * abar.sqrt() / (1 - abar) - of_pixels * mean
        from_code = of_code * (sketch(code) - mean) / kept.sqrt()
        return mean + (from_pixels + from_code) / precision, precision.rsqrt()


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
    step = encoder.model.stride * 2 ** (len(unet.config.block_out_channels) - 1)
    if size <= 0 or size % step:
        raise UserError(f"size {size} does not suit the generator in {folder}: take a multiple of {step} pixels.")
    return encoder, Denoiser(encoder.model, unet), pixels, condition


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
