"""The code that a small generator is conditioned on: what a few numbers a patch can say best about its pixels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.token_encoder import TokenEncoder
from genview.foreground import TokenMoments, central

RIDGE = 1e-5


@torch.no_grad()
def fit_code(encoder: TokenEncoder, windows: Iterable[Tensor], kept: int = 0) -> None:
    """Set `detail`, `gist`, `sketch` and `residual` of an encoder from images, in closed form and in one pass.

    Of all ways to squeeze the fine features of a patch through D numbers, the detail loses least of the patch's
    pixels when they are drawn from these numbers linearly: reduced-rank regression (Izenman, 1975). With the
    regression y ≈ W f of pixels on features, and V the first D eigenvectors of cov(W f), it is
    Λ^(−1/2) Vᵀ W (f − mean). The gist is the first principal components of the deep features, each scaled to unit
    variance, the first of all last. That one tells foreground from background (GenView, section 3.2), and is turned
    so that the middle of images has more of it than their border: see `CentrePrior`.

    Args:
        encoder: a trunk that is trained; in eval mode.
        windows: batches of images B×3×S×S in [0, 1], some thousand patches in all at least.
        kept: so many channels of the detail stay as they are, for a network that has learnt to read them, and with
            them the gist; the other channels say what these leave unsaid.
    """
    width = encoder.detail.in_channels
    fine = TokenMoments(width + encoder.sketch.out_channels)
    deep = TokenMoments(encoder.gist.in_channels)
    inwards = torch.zeros(encoder.gist.in_channels, dtype=torch.float64)
    for images in windows:
        seen = encoder.features(images)
        fine.add(torch.cat([seen.fine, fold(images, encoder.stride)], dim=1).movedim(1, -1))
        deep.add(seen.deep.movedim(1, -1))
        inwards += _inwards(seen.deep)
    _set_detail(encoder, fine.scatter / fine.count, fine.mean, kept)
    if kept:
        return
    values, vectors = torch.linalg.eigh(deep.scatter / deep.count)
    first = slice(-encoder.gist.out_channels, None)
    vectors[:, -1] *= -1 if vectors[:, -1] @ inwards < 0 else 1
    _set(encoder.gist, vectors[:, first].T / values[first].clamp(min=1e-12).sqrt()[:, None], deep.mean)


def _inwards(deep: Tensor) -> Tensor:
    """Features B×D×h×w of the middle of images less those of their border, summed over the images: D, float64."""
    inside = central((deep.shape[2], deep.shape[3])).view(deep.shape[2:]).to(deep.device)
    if bool(inside.all()):  # too few places to have a border
        return torch.zeros(deep.shape[1], dtype=torch.float64)
    found = deep.double()
    return (found[:, :, inside].mean(dim=2) - found[:, :, ~inside].mean(dim=2)).sum(dim=0).cpu()


def _set_detail(encoder: TokenEncoder, covariance: Tensor, mean: Tensor, kept: int) -> None:
    """Set detail and sketch from the moments of fine features and pixels side by side.

    What the kept channels z = A f let one predict of the pixels, P z with P = cov(y, z) cov(z)⁻¹, is taken off the
    regression W first. So the new channels are uncorrelated with these.
    """
    width, added = encoder.detail.in_channels, encoder.detail.out_channels - kept
    ff, pf, pp = covariance[:width, :width], covariance[width:, :width], covariance[width:, width:]
    old = encoder.detail.weight[:kept].flatten(1).to(ff)
    ridge = RIDGE * ff.diagonal().mean() * torch.eye(width, dtype=ff.dtype)
    left = torch.linalg.solve(ff + ridge, pf.T).T - _regression(old @ ff @ old.T, pf @ old.T) @ old
    values, vectors = torch.linalg.eigh(left @ ff @ left.T)
    first = slice(len(values) - added, None)
    detail = torch.cat([old, (vectors[:, first].T @ left) / values[first].clamp(min=1e-12).sqrt()[:, None]])
    said = pf @ detail.T
    sketch = _regression(detail @ ff @ detail.T, said)
    bias = encoder.detail.bias[:kept].clone()  # type: ignore[index]  # it has a bias
    _set(encoder.detail, detail, mean[:width])
    encoder.detail.bias[:kept] = bias  # type: ignore[index]
    middle = detail @ mean[:width] + encoder.detail.bias.to(mean)  # type: ignore[union-attr]
    encoder.sketch.weight.copy_(sketch[:, :, None, None])
    encoder.sketch.bias.copy_(mean[width:] - sketch @ middle)  # type: ignore[union-attr]
    encoder.residual.copy_((pp.diagonal().mean() - (sketch * said).sum(dim=1).mean()).clamp(min=1e-6))


def _regression(within: Tensor, across: Tensor) -> Tensor:
    """Coefficients of the regression of y on z, from cov(z) and cov(y, z)."""
    found: Tensor = torch.linalg.solve(within, across.T)
    return found.T


def _set(layer: nn.Conv2d, weight: Tensor, mean: Tensor) -> None:
    """Make a 1×1 convolution map features f to weight · (f − mean)."""
    layer.weight.copy_(weight[:, :, None, None])
    layer.bias.copy_(-weight @ mean)  # type: ignore[union-attr]  # it has a bias


def fold(images: Tensor, patch: int) -> Tensor:
    """Images B×3×H×W in [0, 1] → B×(3·patch²)×(H/patch)×(W/patch) in [-1, 1]."""
    return F.pixel_unshuffle(images * 2 - 1, patch)
