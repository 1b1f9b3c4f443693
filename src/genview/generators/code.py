"""The code that a small generator is conditioned on: what a few numbers a patch can say best about its pixels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.token_encoder import TokenEncoder
from genview.foreground import TokenMoments

RIDGE = 1e-5


@torch.no_grad()
def fit_code(encoder: TokenEncoder, windows: Iterable[Tensor]) -> None:
    """Set `detail`, `gist`, `sketch` and `residual` of an encoder from images, in closed form and in one pass.

    Of all ways to squeeze the fine features of a patch through D numbers, the detail loses least of the patch's
    pixels when they are drawn from these numbers linearly: reduced-rank regression (Izenman, 1975). With the
    regression y ≈ W f of pixels on features, and V the first D eigenvectors of cov(W f), it is
    Λ^(−1/2) Vᵀ W (f − mean). The gist is the first principal components of the deep features, each scaled to unit
    variance.

    Args:
        encoder: a trunk that is trained; in eval mode.
        windows: batches of images B×3×S×S in [0, 1], some thousand patches in all at least.
    """
    width = encoder.detail.in_channels
    fine = TokenMoments(width + encoder.sketch.out_channels)
    deep = TokenMoments(encoder.gist.in_channels)
    for images in windows:
        seen = encoder.features(images)
        fine.add(torch.cat([seen.fine, fold(images, encoder.stride)], dim=1).movedim(1, -1))
        deep.add(seen.deep.movedim(1, -1))
    _set_detail(encoder, fine.scatter / fine.count, fine.mean)
    values, vectors = torch.linalg.eigh(deep.scatter / deep.count)
    kept = slice(-encoder.gist.out_channels, None)
    _set(encoder.gist, vectors[:, kept].T / values[kept].clamp(min=1e-12).sqrt()[:, None], deep.mean)


def _set_detail(encoder: TokenEncoder, covariance: Tensor, mean: Tensor) -> None:
    """Set detail and sketch from the moments of fine features and pixels side by side."""
    width, channels = encoder.detail.in_channels, encoder.detail.out_channels
    ff, pf, pp = covariance[:width, :width], covariance[width:, :width], covariance[width:, width:]
    ridge = RIDGE * ff.diagonal().mean() * torch.eye(width, dtype=ff.dtype)
    regression = torch.linalg.solve(ff + ridge, pf.T).T
    values, vectors = torch.linalg.eigh(regression @ ff @ regression.T)
    scale = values[-channels:].clamp(min=1e-12).sqrt()
    detail = (vectors[:, -channels:].T @ regression) / scale[:, None]
    sketch = pf @ detail.T
    _set(encoder.detail, detail, mean[:width])
    encoder.sketch.weight.copy_(sketch[:, :, None, None])
    encoder.sketch.bias.copy_(mean[width:])  # type: ignore[union-attr]  # it has a bias
    encoder.residual.copy_((pp.diagonal().mean() - sketch.square().sum(dim=1).mean()).clamp(min=1e-6))


def _set(layer: nn.Conv2d, weight: Tensor, mean: Tensor) -> None:
    """Make a 1×1 convolution map features f to weight · (f − mean)."""
    layer.weight.copy_(weight[:, :, None, None])
    layer.bias.copy_(-weight @ mean)  # type: ignore[union-attr]  # it has a bias


def fold(images: Tensor, patch: int) -> Tensor:
    """Images B×3×H×W in [0, 1] → B×(3·patch²)×(H/patch)×(W/patch) in [-1, 1]."""
    return F.pixel_unshuffle(images * 2 - 1, patch)
