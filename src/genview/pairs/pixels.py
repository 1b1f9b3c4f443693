"""Views on the processor: a crop cut from decoded pixels, then a look applied to it, in whole numbers.

Results are torchvision's to rounding. Whole numbers of 16 bits halve the memory that is moved, which is what such
work costs; `on_device` does the same in floats for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F

from genview.pairs.augment import UNCHANGED, Box, Look

SHARPNESS = 1.5
"""How many times its own side a view's crop must measure in an image that is decoded at a part of its size.

Against views of the whole image, the worst twentieth then has an SSIM of 0.992 and 37 dB (mean 44 dB), and with 1.0
an SSIM of 0.973 and 31 dB: photographs of scikit-image and COCO, views of 32 to 224 px.
"""


def shrink(size: tuple[int, int], crops: Iterable[tuple[Look, int]]) -> int:
    """Return by how much (1, 2, 4 or 8) an image of this width and height may shrink before views are cut from it.

    Args:
        size: width and height.
        crops: the looks of the views, and their sides.
    """
    width, height = size
    allowed = min(
        min((look.box[2] - look.box[0]) * width, (look.box[3] - look.box[1]) * height) / (SHARPNESS * side)
        for look, side in crops
    )
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(1.0, allowed))


def cut(pixels: np.ndarray, look: Look, side: int) -> tuple[np.ndarray, Box]:
    """Cut the box of a look out of an image and resize it (bicubic, antialiased).

    Args:
        pixels: uint8 H×W×3.
        look: its box, and whether the image is coarse, are used here.
        side: of the view.

    Returns:
        The view, uint8 3×side×side, and the box of whole pixels that was cut, as shares.
    """
    if look.coarse:
        pixels = _reduced(pixels, max(1, round(look.coarse * side)))
    height, width = pixels.shape[:2]
    left, right = _whole(look.box[0], look.box[2], width)
    top, bottom = _whole(look.box[1], look.box[3], height)
    view = _resized(pixels[top:bottom, left:right], side, side)
    return view, (left / width, top / height, right / width, bottom / height)


def _whole(first: float, last: float, length: int) -> tuple[int, int]:
    """Round to pixels, at least one."""
    start = min(round(first * length), length - 1)
    return start, max(start + 1, round(last * length))


def _reduced(pixels: np.ndarray, shortest: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    share = shortest / min(height, width)
    if share >= 1:
        return pixels
    return _resized(pixels, round(height * share), round(width * share)).transpose(1, 2, 0)


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 H×W×3 to 3×height×width; torch's is three times as fast as Pillow's, and equal to rounding."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    view: np.ndarray = F.interpolate(images, (height, width), mode="bicubic", antialias=True)[0].numpy()
    return view


def applied(view: np.ndarray, look: Look) -> np.ndarray:
    """Apply all of a look but its crop to a uint8 view 3×S×S."""
    for place in look.order:
        if look.factors[place] != UNCHANGED[place]:
            view = CHANGES[place](view, look.factors[place])
    if look.grey:
        view = np.repeat(grey(view).astype(np.uint8)[None], 3, axis=0)
    if look.sigma:
        view = blurred(view, look.sigma)
    if look.solarised:
        view = np.where(view < 128, view, 255 - view)
    return np.ascontiguousarray(view[..., ::-1] if look.flipped else view)


def brightness(view: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all values."""
    return _by_table(view, factor, 0.0)


def contrast(view: np.ndarray, factor: float) -> np.ndarray:
    """Multiply distances from the mean grey."""
    return _by_table(view, factor, (1 - factor) * float(grey(view).mean()))


def saturation(view: np.ndarray, factor: float) -> np.ndarray:
    """Multiply distances from the grey of each pixel."""
    levels = grey(view).astype(np.float32)
    values = view - levels
    values *= np.float32(factor)
    values += levels + np.float32(0.5)
    clipped: np.ndarray = np.clip(values, 0, 255, out=values).astype(np.uint8)
    return clipped


def hue(view: np.ndarray, turns: float) -> np.ndarray:
    """Turn the hue; largest and smallest channel of each pixel stay.

    The angle of the hue is held as a multiple of the difference of the two, so that nothing is divided by it.
    """
    red, green, blue = view.astype(np.int16)
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    span = most - least
    angle = np.where(
        most == red, green - blue, np.where(most == green, blue - red + 2 * span, red - green + 4 * span)
    )
    angle += np.rint(span * np.float32(6 * turns)).astype(np.int16)
    circle = 6 * span
    angle += circle * (angle < 0)
    angle -= circle * (angle >= circle)
    turned = np.empty_like(view)
    _rise(np.abs(angle - 3 * span) - span, span, least, turned[0])
    _rise(2 * span - np.abs(angle - 2 * span), span, least, turned[1])
    _rise(2 * span - np.abs(angle - 4 * span), span, least, turned[2])
    return turned


def _rise(height: np.ndarray, most: np.ndarray, least: np.ndarray, out: np.ndarray) -> None:
    """Write a channel that rises from `least` by `height`, bounded by 0 and `most`."""
    np.maximum(height, 0, out=height)
    np.minimum(height, most, out=height)
    np.add(height, least, out=out, casting="unsafe")


CHANGES = (brightness, contrast, saturation, hue)
"""In the order of `Look.factors`."""


def grey(view: np.ndarray) -> np.ndarray:
    """Return the luma of uint8 3×S×S (ITU-R BT.601) as uint16 S×S; 256ths keep the sum within 16 bits."""
    levels: np.ndarray = view[0] * np.uint16(77)
    levels += view[1] * np.uint16(150)
    levels += view[2] * np.uint16(29)
    levels += np.uint16(128)
    levels >>= np.uint16(8)
    return levels


def blurred(view: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian that ends at three σ; pixels of the edge continue beyond it."""
    taps = weights(sigma)
    smooth: np.ndarray = _smoothed(_smoothed(view, taps, 1), taps, 2).astype(np.uint8)
    return smooth


def weights(sigma: float) -> list[int]:
    """Return the right half of the Gaussian, its middle first, in 256ths; all of it sums to one."""
    reach = range(1, math.ceil(3 * sigma) + 1)
    values = [math.exp(-0.5 * (k / sigma) ** 2) for k in reach]
    tail = [round(256 * value / (1 + 2 * sum(values))) for value in values]
    return [256 - 2 * sum(tail), *(tap for tap in tail if tap)]


def _smoothed(view: np.ndarray, taps: list[int], axis: int) -> np.ndarray:
    """Weigh neighbours along an axis; in 256ths, values stay below 2¹⁶."""
    reach, length = len(taps) - 1, view.shape[axis]
    padded = np.empty([n + 2 * reach * (i == axis) for i, n in enumerate(view.shape)], np.uint16)
    lines = padded.swapaxes(0, axis)
    lines[reach : reach + length] = view.swapaxes(0, axis)
    lines[:reach], lines[reach + length :] = lines[reach], lines[reach + length - 1]
    total = lines[reach : reach + length] * np.uint16(taps[0])
    both = np.empty_like(total)
    for k, tap in enumerate(taps[1:], start=1):
        np.add(lines[reach - k :][:length], lines[reach + k :][:length], out=both)
        both *= np.uint16(tap)
        total += both
    total += np.uint16(128)
    total >>= np.uint16(8)
    return total.swapaxes(0, axis)


def _by_table(view: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Look up value × factor + offset; bytes do so three times as fast as arrays, which make large indices first."""
    table = np.clip(np.rint(np.arange(256) * factor + offset), 0, 255).astype(np.uint8)
    return np.frombuffer(bytearray(view).translate(table.tobytes()), np.uint8).reshape(view.shape)
