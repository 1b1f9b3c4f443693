"""The sampler that all generators share: pure functions on tensors, one row of a batch like any other."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.errors import UserError
from genview.seeds import seed_of

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Noisy B×C×h×w and time → conditional prediction, and the unconditional one where guidance needs it."""


def noise_for(seeds: Sequence[int], shape: Sequence[int], stream: str) -> Tensor:
    """Standard normal noise B×shape, float32 on the CPU; a row depends on its seed and the stream alone."""
    rows = [torch.Generator().manual_seed(seed_of(seed, "", 0, stream)) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=row) for row in rows])


def noised_embedding(
    embedding: Tensor, level: Tensor, noise: Tensor, alphas_cumprod: Tensor, *, mean: Tensor, std: Tensor
) -> Tensor:
    """Noise embeddings B×E by their levels B, in float32: half precision would make level 0 and 100 others.

    With z = (c - mean) / std, the result is (√ᾱ_l z + √(1 - ᾱ_l) ε) · std + mean, as in Stable unCLIP.

    Args:
        embedding: c, B×E.
        level: l, B integers that index `alphas_cumprod`.
        noise: ε, B×E.
        alphas_cumprod: ᾱ, one value a level, falling from 1 to 0.
        mean: of c, broadcastable to B×E.
        std: of c, broadcastable to B×E.

    Raises:
        UserError: a level lies outside the schedule.
    """
    last = len(alphas_cumprod) - 1
    if int(level.min()) < 0 or int(level.max()) > last:
        raise UserError(
            f"Noise levels go from 0 to {last}; found {int(level.min())} to {int(level.max())}. "
            "Mend the noise policy or the file of levels."
        )
    kept = alphas_cumprod.float().to(level.device)[level].unsqueeze(1)
    z = (embedding.float() - mean) / std
    return (kept.sqrt() * z + (1 - kept).sqrt() * noise.float()) * std + mean


def sinusoid(level: Tensor, width: int) -> Tensor:
    """Levels B → B×width, float32: cosines, then sines, at width/2 frequencies from 1 down towards 1/10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000) / half))
    angles = level.float().unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def denoise(predict: Predict, scheduler: Any, latents: Tensor, steps: int, guidance: Tensor) -> Tensor:
    """Solve from noise to a clean sample with one of diffusers' deterministic schedulers.

    Classifier-free guidance (Ho & Salimans, 2022) has a scale of its own for every row:
    unconditional + guidance · (conditional - unconditional).

    Args:
        predict: the network; without an unconditional prediction there is no guidance.
        scheduler: left as it was; a fresh copy keeps the state of this call.
        latents: standard normal noise B×C×h×w.
        steps: steps of the solver (PNDM calls the network once more).
        guidance: B scales.

    Returns:
        The clean sample B×C×h×w.
    """
    scheduler = copy.deepcopy(scheduler)
    with warnings.catch_warnings():
        # Some schedulers of diffusers turn a tensor into an array in a way that NumPy 2 frowns upon.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps, device=latents.device)
    scale = guidance.to(latents).view(-1, *[1] * (latents.ndim - 1))
    x: Tensor = latents * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        conditional, unconditional = predict(scheduler.scale_model_input(x, t), t)
        if unconditional is not None:
            conditional = unconditional + scale * (conditional - unconditional)
        x = scheduler.step(conditional, t, x, return_dict=False)[0]
    return x


def finished(images: Tensor, size: int) -> Tensor:
    """Turn what a decoder gave into views, on the device it is on.

    Args:
        images: B×3×H×W, nominally in [-1, 1]; what lies outside is clamped.
        size: side of the views in pixels.

    Returns:
        uint8 B×3×size×size, rounded. A row with a value that is not finite is black throughout.
    """
    images = images.float()
    fine = torch.isfinite(images).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    images = torch.where(fine, images, 0).clamp(-1, 1)
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    scaled = ((images + 1) * 127.5).round().clamp(0, 255)
    return torch.where(fine, scaled, 0).to(torch.uint8)
