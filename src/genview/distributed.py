"""Processes that train together: who am I, and sums over all. Alone, everything is its plain self."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def gathered(x: Tensor) -> Tensor:
    """Concatenate the x of all processes, of one shape, along the first dimension in order of rank; no gradient."""
    if not _together():
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gathered_with_gradient(x: Tensor) -> Tensor:
    """As `gathered`, but the gradient flows back to the process that each part came from.

    A part's gradient is the sum over the losses of all processes. DDP then averages over processes, which gives the
    gradient of the mean of their losses.
    """
    return _Gather.apply(x) if _together() else x


def gathered_rows(x: Tensor) -> Tensor:
    """Where the rows of this process's x lie in `gathered(x)`."""
    return torch.arange(len(x), device=x.device) + rank() * len(x)


def own_rows(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Draw `count` rows at random so that together, all processes have what one would that draws all rows.

    Every process draws the rows of all, from generators in the same state, and keeps its own.

    Args:
        draw: number of rows → tensor with that many.
        count: rows of this process, as many as every other has.
    """
    return draw(count * world_size())[rank() * count : (rank() + 1) * count]


def global_sum(x: Tensor) -> Tensor:
    """Sum of the x of all processes, element by element; no gradient."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if _together():
        dist.all_reduce(total)
    return total


def global_mean(x: Tensor) -> Tensor:
    """Mean of the x of all processes, element by element; no gradient."""
    return global_sum(x) / world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.own = gathered_rows(x)
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return global_sum(gradient)[ctx.own]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
