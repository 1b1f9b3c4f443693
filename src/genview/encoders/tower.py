"""Frozen towers from timm: CLIP's ConvNeXt for the quality of pairs (GenView, section 3.3), or any other."""

from __future__ import annotations

from typing import Any, Self

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.frozen import Encoded
from genview.errors import UserError, nearest


class TimmTower:
    """A pretrained timm model as a frozen encoder.

    Tokens are the last feature map: after the final norm for transformers, before pooling and norm for
    convolutional nets, which are the taps that the paper's directions were fitted on. A plain class, not a
    module: it can neither be put in train mode by a parent nor end in a checkpoint.
    """

    def __init__(self, name: str, net: Any, size: int | None = None) -> None:
        config = resolve_model_data_config(net)
        self.name = name
        self.size = size or int(config["input_size"][-1])
        self._net = net.eval().requires_grad_(False)
        self._mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        self._is_transformer = hasattr(net, "num_prefix_tokens")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; see `FrozenEncoder`."""
        x = (fitted(images, self.size) - self._mean) / self._std
        final, (grid_map,) = self._net.forward_intermediates(x, indices=[-1], norm=self._is_transformer)
        embedding = self._net.forward_head(final)
        return Encoded(as_tokens(grid_map), embedding.float(), (grid_map.shape[2], grid_map.shape[3]))

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._net.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self


def load_timm(name: str, size: int | None = None) -> TimmTower:
    """Load a pretrained timm tower by name (`local-dir:FOLDER` reads a folder).

    Raises:
        UserError: the name is unknown or its weights cannot be had.
    """
    known = timm.list_pretrained()
    if not name.startswith("local-dir:") and name not in known and name not in timm.list_models():
        raise UserError(f"timm has no pretrained model '{name}'.{nearest(name, known)}")
    try:
        return TimmTower(name, timm.create_model(name, pretrained=True), size)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of '{name}' cannot be had ({type(error).__name__}: {error}). Without a network, put the "
            "model into a folder with config.json and model.safetensors and name it as local-dir:FOLDER."
        ) from error


def fitted(images: Tensor, size: int) -> Tensor:
    """Resize B×3×H×W so that the shortest side is `size` (antialiased bicubic) and crop the centre square."""
    height, width = images.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def as_tokens(grid_map: Tensor) -> Tensor:
    """B×D×h×w → B×(h·w)×D, float32."""
    return grid_map.flatten(2).transpose(1, 2).float()
