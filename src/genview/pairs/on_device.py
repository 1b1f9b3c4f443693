"""Looks applied to a batch of views on any device, each view with its own numbers, without a loop over images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.pairs.augment import SIGMA, UNCHANGED, Looks

REACH = int(3 * SIGMA[1])
LUMA = (0.299, 0.587, 0.114)


def applied(views: Tensor, looks: Looks) -> Tensor:
    """Apply looks to views.

    Args:
        views: uint8 B×3×S×S, on the device.
        looks: of the B views, on the processor: which views a step concerns is known without waiting for the device.

    Returns:
        Floats in [0, 1] on the device, B×3×S×S in channels-last memory.
    """
    images = views.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    for rows, change, numbers in _steps(looks, images.device):
        images.index_copy_(0, rows, change(images.index_select(0, rows), numbers.view(-1, 1, 1, 1)))
    return images.contiguous(memory_format=torch.channels_last)


def _steps(looks: Looks, device: torch.device) -> list[tuple[Tensor, Callable[[Tensor, Tensor], Tensor], Tensor]]:
    """Which views, on the device, what is done to them, and with which numbers; in the order of a look."""
    jittered = looks.factors != torch.tensor(UNCHANGED)
    steps = [
        ((looks.order[:, slot] == place) & jittered[:, place], change, looks.factors[:, place])
        for slot in range(len(CHANGES))
        for place, change in enumerate(CHANGES)
    ]
    steps += [
        (looks.grey, _grey, looks.sigma),
        (looks.sigma > 0, blurred, looks.sigma),
        (looks.solarised, _solarised, looks.sigma),
        (looks.flipped, _flipped, looks.sigma),
    ]
    chosen = [mask.nonzero().flatten() for mask, _, _ in steps]
    rows = _moved(chosen, device)
    numbers = _moved([values[at].float() for (_, _, values), at in zip(steps, chosen, strict=True)], device)
    return [(r, step[1], n) for r, step, n in zip(rows, steps, numbers, strict=True) if len(r)]


def _moved(parts: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Move parts in one transfer for which nothing has to wait."""
    whole = torch.cat(parts)
    if device.type == "cuda":
        whole = whole.pin_memory()
    return torch.split(whole.to(device, non_blocking=True), [len(part) for part in parts])


def luma(images: Tensor) -> Tensor:
    """Return the grey of B×3×S×S as B×1×S×S (ITU-R BT.601)."""
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return grey


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply all values."""
    return (images * factor).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply distances from the mean grey of each image."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return (images * factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply distances from the grey of each pixel."""
    return torch.lerp(luma(images), images, factor).clamp_(0, 1)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue; see `pixels.hue`."""
    red, green, blue = images.split(1, dim=1)
    least, most = images.amin(dim=1, keepdim=True), images.amax(dim=1, keepdim=True)
    span = most - least
    angle = torch.where(
        most == red, green - blue, torch.where(most == green, blue - red + 2 * span, red - green + 4 * span)
    )
    angle.addcmul_(span, 6 * turns)
    circle = 6 * span
    angle = torch.where(angle < 0, angle + circle, angle)
    angle = torch.where(angle >= circle, angle - circle, angle)
    rises = (
        (angle - 3 * span).abs_() - span,
        2 * span - (angle - 2 * span).abs_(),
        2 * span - (angle - 4 * span).abs_(),
    )
    return torch.cat([torch.minimum(rise.clamp_(min=0), span) for rise in rises], dim=1).add_(least)


CHANGES = (brightness, contrast, saturation, hue)
"""In the order of `Look.factors`."""


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by its own Gaussian; pixels of the edge continue beyond it."""
    taps = torch.arange(REACH + 1, device=images.device) / sigma.view(-1, 1)
    taps = torch.exp(-0.5 * taps.square())
    taps = taps / (2 * taps.sum(dim=1, keepdim=True) - taps[:, :1])
    return _smoothed(_smoothed(images, taps, 2), taps, 3)


def _smoothed(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Weigh neighbours along a dimension; a sum of shifts, which keeps float32 under autocast, unlike convolution."""
    length = images.shape[dim]
    padded = F.pad(images, (0, 0, REACH, REACH) if dim == 2 else (REACH, REACH, 0, 0), mode="replicate")
    weights = taps.T.reshape(REACH + 1, -1, 1, 1, 1)
    total = padded.narrow(dim, REACH, length) * weights[0]
    for k in range(1, REACH + 1):
        both = padded.narrow(dim, REACH - k, length) + padded.narrow(dim, REACH + k, length)
        total.addcmul_(both, weights[k])
    return total


def _grey(images: Tensor, _: Tensor) -> Tensor:
    return luma(images).expand(-1, 3, -1, -1)


def _solarised(images: Tensor, _: Tensor) -> Tensor:
    return torch.where(images >= 0.5, 1 - images, images)


def _flipped(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(-1)
