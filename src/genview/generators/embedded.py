"""The small generators inside the package, and those that `fit-generator` makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from genview.encoders.token_encoder import FrozenTokenEncoder, weights_folder
from genview.generators.sampler import denoise, noise_for, noised_embedding, to_uint8
from genview.generators.token_diffusion import NOTHING_KNOWN, load_layout


@dataclass(frozen=True)
class EmbeddedSettings:
    """`weights` names a model inside the package or the --out folder of `genview fit-generator`.

    `size` is the side of the views, a multiple of 8 pixels; the network is convolutional and was trained on
    windows of 32. With a guidance of 1 the network runs once a step, otherwise twice.
    """

    kind: Literal["embedded"] = "embedded"
    weights: str = "natural"
    size: int = 32
    steps: int = 2
    guidance: float = 1.0
    batch: int = 64
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def load(self, device: torch.device | str) -> Embedded:
        """Read the weights.

        Raises:
            UserError: there are no such weights.
        """
        return Embedded(weights_folder(self.weights), self).to(device)


class Embedded:
    """A `Generator` of views from a grid of features; see `token_diffusion`."""

    def __init__(self, folder: Path, settings: EmbeddedSettings) -> None:
        self.name = f"embedded/{folder.name}"
        self.size = settings.size
        self.settings = settings
        self.encoder: FrozenTokenEncoder
        self.encoder, self._denoiser, self._pixels, self._noising = load_layout(folder, settings.size)
        self._denoiser.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._device = torch.device(device)
        self.encoder.to(device)
        self._denoiser.to(device)
        return self

    @torch.no_grad()
    def sample(self, condition: Tensor, level: Tensor, guidance: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make one view a row; see `Generator.sample`.

        Args:
            condition: embeddings B×E, as the encoder gives them.
            level: noise levels B, 0…999.
            guidance: guidance scales B; 1 is none.
            seeds: one seed a row, the only source of randomness.

        Returns:
            uint8 images B×3×size×size.
        """
        shape = self.encoder.condition_shape
        zero, one = torch.zeros(1), torch.ones(1)
        noise = noise_for(seeds, (condition.shape[1],), "embedding")
        noised = noised_embedding(
            condition.float().cpu(), level.cpu(), noise, self._noising.alphas_cumprod, mean=zero, std=one
        )
        known, level = noised.view(-1, *shape).to(self._device), level.to(self._device)
        patch = self.encoder.model.stride
        folded = (3 * patch**2, self.size // patch, self.size // patch)
        latents = noise_for(seeds, folded, "latent").to(self._device)
        guided = bool((guidance != 1).any())

        def predictions(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            conditional = self._predict(x, t, known, level)
            if not guided:
                return conditional, None
            unknown = torch.full_like(level, NOTHING_KNOWN)
            return conditional, self._predict(x, t, torch.zeros_like(known), unknown)

        x = denoise(predictions, self._solver(), latents, self.settings.steps, guidance.to(self._device))
        return to_uint8(torch.pixel_shuffle(x, patch)).cpu()

    def _predict(self, x: Tensor, t: Tensor, condition: Tensor, level: Tensor) -> Tensor:
        half = self.settings.precision == "bfloat16" or (
            self.settings.precision == "auto" and self._device.type == "cuda"
        )
        times = t.to(self._device).expand(len(x))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            found: Tensor = self._denoiser(x, times, condition, level)
        return found.float().clamp(-1, 1)

    def _solver(self) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(self._pixels.config)
