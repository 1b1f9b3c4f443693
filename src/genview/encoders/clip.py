"""CLIP's image tower with its projection, from transformers: the encoder that Stable unCLIP is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from genview.encoders.frozen import Encoded
from genview.encoders.tower import fitted


class ClipTower:
    """A `CLIPVisionModelWithProjection` as a frozen encoder.

    Tokens are the patch tokens after the final LayerNorm, where GenView's foreground
    direction is taken; the embedding is the projected class token, which is the condition of unCLIP.
    """

    def __init__(self, name: str, net: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        side = net.config.image_size // net.config.patch_size
        self.name = name
        self.size: int = net.config.image_size
        self.width: int = net.config.projection_dim
        self._grid = (side, side)
        self._net = net.eval().requires_grad_(False)
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; see `FrozenEncoder`."""
        x = (fitted(images.to(self._mean.device), self.size) - self._mean) / self._std
        found = self._net(pixel_values=x.to(self._net.dtype))
        # transformers normalises only the class token; the LayerNorm belongs to every token of OpenCLIP.
        tokens = self._net.vision_model.post_layernorm(found.last_hidden_state[:, 1:])
        return Encoded(tokens.float(), found.image_embeds.float(), self._grid)

    def of_nothing(self) -> Tensor:
        """Return the embedding 1×E of an image that is 0 once it is normalised."""
        return self.encode(self._mean.expand(1, 3, self.size, self.size)).embedding

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._net.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self
