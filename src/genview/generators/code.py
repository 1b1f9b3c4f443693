"""The code that a small generator is conditioned on: what a few numbers a patch can say best about its pixels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.token_encoder import TokenEncoder
from genview.foreground import TokenMoments

RIDGE = 1e-5


@torch.no_grad()
def fit_code(encoder: TokenEncoder, windows: Iterable[Tensor]) -> None:
    """Set `project`, `sketch` and `residual` of an encoder from images, in closed form and in one pass.

    Of all ways to squeeze the features of a patch through C numbers, this one loses least of the patch's pixels
    when they are drawn from these numbers linearly: reduced-rank regression (Izenman, 1975). With the regression
    y ≈ W f of pixels on features, and V the first C eigenvectors of cov(W f), the code is Λ^(−1/2) Vᵀ W (f − mean).

    Args:
        encoder: a trunk that is trained; in eval mode.
        windows: batches of images B×3×S×S in [0, 1], some thousand patches in all at least.
    """
    width, channels = encoder.project.in_channels, encoder.settings.channels
    moments = TokenMoments(width + encoder.sketch.out_channels)
    for images in windows:
        _, seen = encoder.features(images)
        pixels = fold(images, encoder.stride)
        moments.add(torch.cat([seen, pixels], dim=1).movedim(1, -1))
    covariance = moments.scatter / moments.count
    ff, pf, pp = covariance[:width, :width], covariance[width:, :width], covariance[width:, width:]
    ridge = RIDGE * ff.diagonal().mean() * torch.eye(width, dtype=ff.dtype)
    regression = torch.linalg.solve(ff + ridge, pf.T).T
    values, vectors = torch.linalg.eigh(regression @ ff @ regression.T)
    scale = values[-channels:].clamp(min=1e-12).sqrt()
    project = (vectors[:, -channels:].T @ regression) / scale[:, None]
    sketch = pf @ project.T
    mean_f, mean_p = moments.mean[:width], moments.mean[width:]
    encoder.project.weight.copy_(project[:, :, None, None])
    encoder.project.bias.copy_(-project @ mean_f)  # type: ignore[union-attr]  # it has a bias
    encoder.sketch.weight.copy_(sketch[:, :, None, None])
    encoder.sketch.bias.copy_(mean_p)  # type: ignore[union-attr]
    encoder.residual.copy_((pp.diagonal().mean() - sketch.square().sum(dim=1).mean()).clamp(min=1e-6))


def fold(images: Tensor, patch: int) -> Tensor:
    """Images B×3×H×W in [0, 1] → B×(3·patch²)×(H/patch)×(W/patch) in [-1, 1]."""
    return F.pixel_unshuffle(images * 2 - 1, patch)
