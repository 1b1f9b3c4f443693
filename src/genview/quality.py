"""Quality of a pair: foregrounds alike and backgrounds different is good (GenView, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.distributed import global_sum
from genview.encoders import FrozenEncoder
from genview.foreground import soft_mask
from genview.images.origin import Origin

TINY = 1e-7


@dataclass(frozen=True)
class Quality:
    """Per pair, each B: similarity of the foregrounds, of the backgrounds, and the weight (mean one)."""

    foreground: Tensor
    background: Tensor
    weight: Tensor


@torch.no_grad()
def pair_quality(
    tokens_a: Tensor, tokens_b: Tensor, direction: Tensor, gamma: float = 1.0, *, per_process: bool = False
) -> Quality:
    """Weigh pairs of views by their tokens.

    s^f and s^b are cosines between the foreground-weighted means, and the background-weighted means, of the tokens
    of both views; q = s^f − s^b; w_i = N exp(γ q_i) / Σ_j exp(γ q_j). Everything is float32, under autocast too:
    in half precision an empty mask would make every weight NaN.

    Args:
        tokens_a: B×N×D of one view.
        tokens_b: B×N×D of the other.
        direction: D, the foreground's principal direction.
        gamma: γ, how much quality counts; 0 gives equal weights.
        per_process: let N and the sum be this process's (the authors' code) instead of the global batch's.

    Raises:
        FloatingPointError: a token is not finite; the message names the rows.
    """
    _check(tokens_a, tokens_b)
    with torch.autocast(tokens_a.device.type, enabled=False):
        foreground_a, background_a = _pooled(tokens_a.float(), direction.float())
        foreground_b, background_b = _pooled(tokens_b.float(), direction.float())
    foreground = F.cosine_similarity(foreground_a, foreground_b, eps=TINY)
    background = F.cosine_similarity(background_a, background_b, eps=TINY)
    grown = torch.exp(gamma * (foreground - background))
    sums = torch.stack([grown.sum(), torch.tensor(float(len(grown)), device=grown.device)])
    total, count = sums if per_process else global_sum(sums)
    return Quality(foreground, background, grown * count / total)


def _pooled(tokens: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground-weighted and background-weighted means of tokens B×N×D: z^f and z^b, each B×D."""
    mask = soft_mask(tokens @ direction)
    return tuple(  # type: ignore[return-value]
        torch.einsum("bn,bnd->bd", part / (part.sum(dim=1, keepdim=True) + TINY), tokens) for part in (mask, 1 - mask)
    )


def _check(tokens_a: Tensor, tokens_b: Tensor) -> None:
    fine = torch.isfinite(tokens_a).all(dim=(1, 2)) & torch.isfinite(tokens_b).all(dim=(1, 2))
    if not bool(fine.all()):
        rows = torch.nonzero(~fine).flatten().tolist()
        raise FloatingPointError(f"The frozen encoder gave tokens that are not finite for rows {rows} of the batch.")


class TowerQuality:
    """Weigh pairs of images with a frozen encoder. A plain class: it is in no checkpoint and has no train mode."""

    def __init__(self, encoder: FrozenEncoder, direction: Tensor, gamma: float = 1.0) -> None:
        self.encoder, self.direction, self.gamma = encoder, direction, gamma

    def __call__(self, views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG002
        """Quality of the pairs of the first two views, B×3×H×W in [0, 1] each."""
        tokens_a, tokens_b = self.encoder.encode(torch.cat(list(views[:2]))).tokens.chunk(2)
        return pair_quality(tokens_a, tokens_b, self.direction, self.gamma)
