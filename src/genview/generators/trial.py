"""How many views to make at once: found by trial where a GPU's memory sets the limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genview.errors import UserError
from genview.generators.generator import Generator

ON_CPU = 8
"""Rows at once on a CPU, where more is not faster."""
MOST = 64
ENOUGH = 1.05
"""Twice the rows should be faster by this factor a row, or the smaller batch is kept."""


def batch_for(generator: Generator, wanted: int | Literal["auto"], device: torch.device | str) -> int:
    """Return `wanted`, or where that is 'auto' the batch that makes most views a second.

    On a GPU batches are doubled as long as they fit into its memory and pay; the last that did both is taken.

    Raises:
        UserError: not even one view at once fits.
    """
    if wanted != "auto":
        return wanted
    if torch.device(device).type != "cuda":
        return ON_CPU
    best, least, batch = 0, float("inf"), 1
    while batch <= MOST:
        try:
            seconds = _seconds_a_view(generator, batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds * ENOUGH > least:
            break
        best, least, batch = batch, seconds, 2 * batch
    if not best:
        raise UserError(
            f"Not even one view at once fits into the memory of {device}: choose a smaller generator.size, "
            "generator.precision: bfloat16, or generator.tiny_vae."
        )
    return best


class Trial(NamedTuple):
    """What one view costs: seconds, and bytes as it is stored."""

    seconds: float
    bytes: float


def trial(generator: Generator, condition: Tensor, guidance: float, stored: Callable[[Tensor], bytes]) -> Trial:
    """Make one view for each of B conditions B×E at level 200, after a first batch that warms up, and measure.

    Args:
        generator: whose views.
        condition: embeddings of real images: how well a view can be compressed depends on them.
        guidance: scale.
        stored: turns a view, uint8 3×S×S, into the bytes that are kept.
    """
    count = len(condition)
    given = (condition, torch.full((count,), 200), torch.full((count,), guidance), range(count))
    generator.sample(*given)
    start = time.perf_counter()
    views = generator.sample(*given)
    seconds = time.perf_counter() - start
    return Trial(seconds / count, sum(len(stored(view)) for view in views) / count)


def _seconds_a_view(generator: Generator, batch: int) -> float:
    pixels = torch.rand(batch, 3, generator.encoder.size, generator.encoder.size)
    condition = generator.encoder.encode(pixels).embedding.cpu()
    return trial(generator, condition, 2.0, lambda _: b"").seconds
