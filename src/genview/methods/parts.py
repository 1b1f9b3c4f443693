"""What several methods share: heads, slow copies, queues, full precision, contrast and prediction across views."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import combinations, groupby, pairwise
from typing import Any, TypeVar

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from genview.distributed import gathered_rows, gathered_with_gradient
from genview.encoders.backbone import Backbone
from genview.encoders.vit import check_size
from genview.errors import UserError

M = TypeVar("M", bound=nn.Module)
Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def mlp(
    widths: Sequence[int],
    *,
    hidden_norm: bool,
    last_norm: bool,
    last_bias: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers of the given widths, activations between.

    BatchNorm on hidden outputs and, without scale and shift, on the last. A layer followed by BatchNorm has no bias.
    """
    layers: list[nn.Module] = []
    final = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        norm = last_norm if i == final else hidden_norm
        layers.append(nn.Linear(inputs, outputs, bias=not norm and (i != final or last_bias)))
        if norm:
            layers.append(nn.BatchNorm1d(outputs, affine=i != final))
        if i != final:
            layers.append(activation())
    return nn.Sequential(*layers)


def slow_copy(module: M) -> M:
    """Copy a module whose weights will follow by `follow`: no gradient, nothing dropped at random."""
    slow = copy.deepcopy(module).requires_grad_(False)
    for part in slow.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    return slow


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Let slow ← momentum · slow + (1 − momentum) · fast, for parameters; buffers stay each one's own."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def cosine_to_one(start: float, progress: float) -> float:
    """Momentum that rises from `start` to 1 as half a cosine of progress in [0, 1] (BYOL, section 3.3)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(loss: Loss) -> Loss:
    """Let a function compute without autocast and with half-precision tensors widened; it is called by position."""

    @wraps(loss)
    def widened(*args: Any) -> Tensor:
        tensors = [x for x in args if isinstance(x, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(at_least_float32(x) if isinstance(x, Tensor) else x for x in args))

    return widened  # type: ignore[return-value]


def unit(x: Tensor) -> Tensor:
    """Scale the rows of x …×D to length 1, in float32 at least, whatever precision autocast gave them."""
    return F.normalize(at_least_float32(x), dim=-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the rows of x B×D with those of y, in float32 at least; B values."""
    return (unit(x) * unit(y)).sum(dim=1)


def encode(backbone: Backbone, views: Sequence[Tensor]) -> Tensor:
    """Encode V views of B images, neighbours of one size in one pass, so that BatchNorm sees them together.

    Returns:
        Features V·B×D, view by view.

    Raises:
        UserError: the backbone is a ViT that takes one size only, and there are several.
    """
    sizes = {view.shape[-2:] for view in views}
    if len(sizes) > 1:
        check_size(backbone.net)
    groups = (torch.cat(list(group)) for _, group in groupby(views, key=lambda view: view.shape))
    return torch.cat([backbone(group) for group in groups])


@in_float32
def contrast(z: Tensor, temperature: float) -> Tensor:
    """Contrast V views of B images with all views of all images of the global batch.

    The loss of an ordered pair of views (u, v) of image i is −log softmax of their similarity among those of view u
    with every view but itself (SimCLR, eq. 1; with more than two views StableRep, eq. 1 and 2, whose target is
    uniform over the other views of i).

    Args:
        z: V×B×D, rows of unit length.
        temperature: τ.

    Returns:
        B×P, the mean of both orders for each of the P pairs of views in the order of `itertools.combinations`.
    """
    everyone = gathered_with_gradient(z.transpose(0, 1).contiguous())
    here, rows = gathered_rows(z[0]), torch.arange(z.shape[1], device=z.device)
    similarity = torch.einsum("ubd,nvd->bunv", z, everyone) / temperature
    itself = torch.zeros_like(similarity, dtype=torch.bool)
    itself[rows, :, here] = torch.eye(len(z), dtype=torch.bool, device=z.device)
    among = similarity.masked_fill(itself, -math.inf).flatten(2).logsumexp(dim=2, keepdim=True)
    loss = among - similarity[rows, :, here]
    return torch.stack([(loss[:, u, v] + loss[:, v, u]) / 2 for u, v in combinations(range(len(z)), 2)], dim=1)


@in_float32
def across_views(targets: Tensor, log_predictions: Tensor) -> Tensor:
    """Cross-entropy of every view's prediction with the target of every other view (SwAV, eq. 6; DINO, eq. 3).

    Args:
        targets: T×B×K, distributions over K of the first T views.
        log_predictions: V×B×K, logarithms of distributions of all V views, the first T included.

    Returns:
        Mean over the T·(V − 1) ordered pairs of different views, B values.
    """
    cross = -torch.einsum("tbk,vbk->tvb", targets, log_predictions)
    different = ~torch.eye(len(targets), len(log_predictions), dtype=torch.bool, device=targets.device)
    return cross[different].mean(dim=0)


@torch.no_grad()
def enqueue(queue: Tensor, oldest: Tensor, rows: Tensor) -> None:
    """Put rows …×N×D in place of the oldest ones of a queue …×K×D, and move `oldest`, the place of the next.

    Raises:
        UserError: there are more rows than places.
    """
    check_room(queue, rows.shape[-2])
    places = (oldest + torch.arange(rows.shape[-2], device=rows.device)) % queue.shape[-2]
    queue[..., places, :] = rows.to(queue.dtype)
    oldest.copy_((oldest + rows.shape[-2]) % queue.shape[-2])


def check_room(queue: Tensor, count: int) -> None:
    """Refuse a batch of `count` rows that a queue …×K×D cannot hold.

    Raises:
        UserError: `count` is more than K.
    """
    if count > queue.shape[-2]:
        raise UserError(f"A batch of {count} does not fit a queue of {queue.shape[-2]}: raise method.queue.")
