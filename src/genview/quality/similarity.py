"""Quality of a pair: foregrounds alike and backgrounds different is good (GenView, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.foreground import soft_mask
from genview.quality.weighting import Weighting

TINY = 1e-7


@dataclass(frozen=True)
class Quality:
    """Similarity of the foregrounds, of the backgrounds, and the weight (mean one) of pairs.

    Each is B where there are two views, and B×P for V > 2, the P = V(V−1)/2 pairs of views in the order of
    `itertools.combinations`.
    """

    foreground: Tensor
    background: Tensor
    weight: Tensor


class Pooled(NamedTuple):
    """z^f and z^b, each B×D: the means of a view's tokens weighted by foreground and by background."""

    foreground: Tensor
    background: Tensor


def full_size(views: Sequence[Tensor]) -> list[Tensor]:
    """Return the views that are weighted: those of the first one's shape."""
    return [view for view in views if view.shape == views[0].shape]


@torch.no_grad()
def pair_quality(
    tokens: Sequence[Tensor], direction: Tensor, weighting: Weighting | None = None, progress: float = 0.0
) -> Quality:
    """Weigh every pair of views by their tokens, whose map M^f is their projection stretched to [0, 1].

    Args:
        tokens: B×N×D of each of V views.
        direction: D, the foreground's principal direction.
        weighting: from quality to weights; the paper's where None.
        progress: share of the training that is done.

    Raises:
        FloatingPointError: a token is not finite; the message names the rows.
    """
    with torch.autocast(direction.device.type, enabled=False):
        views = [pooled(view.float(), soft_mask(view.float() @ direction.float())) for view in tokens]
        return quality_of(views, weighting or Weighting(), progress)


def pooled(tokens: Tensor, mask: Tensor) -> Pooled:
    """Weighted means of tokens B×N×D by a mask B×N in [0, 1], and by what it leaves.

    Call it outside autocast: in half precision an empty mask would make every weight NaN.
    """
    return Pooled(
        *(
            torch.einsum("bn,bnd->bd", part / (part.sum(dim=1, keepdim=True) + TINY), tokens)
            for part in (mask, 1 - mask)
        )
    )


def quality_of(views: Sequence[Pooled], weighting: Weighting, progress: float) -> Quality:
    """Weigh every pair of V pooled views: s^f and s^b are cosines, and q = s^f − s^b.

    Raises:
        FloatingPointError: a view is not finite; the message names the rows.
    """
    _check(views)
    pairs = list(combinations(views, 2))
    foreground = torch.stack([F.cosine_similarity(a.foreground, b.foreground, eps=TINY) for a, b in pairs], dim=1)
    background = torch.stack([F.cosine_similarity(a.background, b.background, eps=TINY) for a, b in pairs], dim=1)
    if len(pairs) == 1:
        foreground, background = foreground[:, 0], background[:, 0]
    return Quality(foreground, background, weighting.weights(foreground - background, progress))


def _check(views: Sequence[Pooled]) -> None:
    fine = torch.stack([torch.isfinite(part).all(dim=1) for view in views for part in view]).all(dim=0)
    if not bool(fine.all()):
        rows = torch.nonzero(~fine).flatten().tolist()
        raise FloatingPointError(f"The frozen encoder gave tokens that are not finite for rows {rows} of the batch.")
