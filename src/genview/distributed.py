"""Processes that train together: who am I, and sums over all. Alone, everything is its plain self."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def gathered(x: Tensor) -> Tensor:
    """Concatenate the x of all processes along the first dimension, in order of rank; no gradient."""
    if not _together():
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gathered_with_gradient(x: Tensor) -> Tensor:
    """As `gathered`, but the gradient flows back to the process that each part came from."""
    return torch.cat(all_gather_with_gradient(x.contiguous())) if _together() else x


def global_sum(x: Tensor) -> Tensor:
    """Sum of the x of all processes, element by element; no gradient."""
    total = x.detach().clone()
    if _together():
        dist.all_reduce(total)
    return total


def global_mean(x: Tensor) -> Tensor:
    """Mean of the x of all processes, element by element; no gradient."""
    return global_sum(x) / world_size()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
