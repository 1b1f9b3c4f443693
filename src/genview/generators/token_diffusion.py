"""A small unCLIP in pixels: a UNet conditioned on a noised grid of features and on the level of that noise.

As in unCLIP (Ramesh et al., 2022; Stable unCLIP), the condition is an image embedding with noise added by a
cosine schedule, and the network is told the level. Unlike there, the embedding keeps a coarse place for every
feature, which a network small enough for a CPU needs to keep objects recognisable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.token_encoder import TokenEncoder, load_token_encoder, save_token_encoder
from genview.errors import UserError
from genview.store import write_json

PIXELS = 2
"""The network works on blocks of 2×2 pixels, folded into channels."""
NOTHING_KNOWN = 1000
"""Level given with an all-zero condition: the unconditional half of guidance."""
LAYOUT = "GenviewTokenDiffusion"


@dataclass(frozen=True)
class NetworkSettings:
    """Widths of the UNet's resolutions from fine to coarse, and residual blocks at each."""

    widths: tuple[int, ...] = (64, 128, 192)
    layers: int = 1


def create_unet(settings: NetworkSettings, condition_channels: int) -> Any:
    """Create diffusers' UNet for folded pixels beside the condition's channels."""
    from diffusers import UNet2DModel

    depth = len(settings.widths)
    folded = 3 * PIXELS**2
    return UNet2DModel(
        in_channels=folded + condition_channels,
        out_channels=folded,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        attention_head_dim=32,
        norm_num_groups=16,
        class_embed_type="timestep",
    )


def fold(images: Tensor) -> Tensor:
    """Images B×3×H×W in [0, 1] → B×12×H/2×W/2 in [-1, 1]."""
    return F.pixel_unshuffle(images * 2 - 1, PIXELS)


def unfold(x: Tensor) -> Tensor:
    """Inverse of `fold`, clamped to [0, 1]."""
    return (F.pixel_shuffle(x, PIXELS) + 1).div(2).clamp(0, 1)


def predict(unet: nn.Module, x: Tensor, t: Tensor, condition: Tensor, level: Tensor) -> Tensor:
    """v-prediction B×12×h×w for noisy `x` at times B or scalar, condition B×C×h'×w' (noised) and levels B."""
    beside = F.interpolate(condition, x.shape[-2:], mode="nearest")
    result: Tensor = unet(torch.cat([x, beside], dim=1), t, class_labels=level).sample
    return result


def schedules() -> tuple[Any, Any]:
    """Return the scheduler of the pixels (v-prediction, zero terminal SNR) and that of the condition's noise."""
    from diffusers import DDIMScheduler, DDPMScheduler

    pixels = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return pixels, DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def save_layout(folder: Path, encoder: TokenEncoder, unet: Any) -> None:
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
    }
    write_json(folder / "model_index.json", index)


def load_layout(folder: Path, size: int) -> tuple[Any, Any, Any, Any]:
    """Read encoder, UNet (float32), pixel scheduler and condition scheduler.

    Raises:
        UserError: the folder was not made by `genview fit-generator`.
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
    return load_token_encoder(folder / "encoder", size), unet, pixels, condition
