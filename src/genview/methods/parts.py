"""What several methods share: heads, the slow copy, the queue, InfoNCE."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)


def mlp(widths: Sequence[int], *, hidden_norm: bool, last_norm: bool) -> nn.Sequential:
    """Linear layers of the given widths, ReLU between; BatchNorm on hidden outputs and, without scale, on the last.

    A layer followed by BatchNorm has no bias.
    """
    layers: list[nn.Module] = []
    final = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        norm = last_norm if i == final else hidden_norm
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(outputs, affine=i != final))
        if i != final:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def slow_copy(module: M) -> M:
    """Copy a module whose weights will follow by `follow`; no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Let slow ← momentum · slow + (1 − momentum) · fast, for parameters; buffers stay each one's own."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def unit(x: Tensor) -> Tensor:
    """Scale the rows of x B×D to length 1, in float32 at least, whatever precision autocast gave them."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE per pair with the negatives of a queue (MoCo, eq. 1).

    Args:
        q: queries B×D, unit length.
        k: their positive keys B×D, unit length.
        negatives: keys K×D of other images, unit length.
        temperature: τ.

    Returns:
        −log( exp(q·k/τ) / (exp(q·k/τ) + Σ exp(q·n/τ)) ), B values.
    """
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device), reduction="none")
