"""BatchNorm over the global batch: every process normalises with the statistics of all."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genview.distributed import gathered_with_gradient, world_size


def synchronised(module: nn.Module) -> nn.Module:
    """Let every BatchNorm in a module, whatever its dimension, use the statistics of the global batch.

    Names in the state dict stay. All processes must give batches of one size. On CUDA torch's SyncBatchNorm takes
    over, which refuses CPU; elsewhere `GlobalBatchNorm` does.

    Args:
        module: on the device it will run on; changed in place.

    Returns:
        The module itself, or its replacement where it is a BatchNorm.
    """
    if any(x.is_cuda for x in (*module.parameters(), *module.buffers())):
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    if isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronised(child))
    return module


class GlobalBatchNorm(_BatchNorm):
    """A BatchNorm that takes the place of another, weights, statistics and (timm's) activation included."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers, self._modules = norm._parameters, norm._buffers, norm._modules
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x B×C×… as one process would that held the batches of all."""
        alone = world_size() == 1 or not self.training
        y = super().forward(x) if alone else self._over_all(x)
        for after in self._modules.values():  # timm's BatchNormAct2d: dropping, then activation
            y = after(y) if after is not None else y
        return y

    def _over_all(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [d for d in range(x.ndim) if d != 1]
        own = torch.stack([wide.mean(dim=over), wide.var(dim=over, correction=0)])
        means, variances = gathered_with_gradient(own[None]).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * world_size())
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = torch.rsqrt(variance + self.eps)
        y = (wide - mean.view(shape)) * (scale * self.weight if self.affine else scale).view(shape)
        return (y + self.bias.view(shape) if self.affine else y).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does: the variance is the unbiased one."""
        if not self.track_running_stats or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
            if running is not None:
                running.lerp_(now.to(running.dtype), share)

    def _check_input_dim(self, input: Any) -> None:
        """Take any number of dimensions."""
