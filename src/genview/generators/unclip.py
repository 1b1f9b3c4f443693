"""Stable unCLIP 2.1: the paper's generator. Models and schedulers are diffusers', the sampling is ours.

The pipeline object of diffusers takes one noise level and one guidance a call; here every row has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.sampler import denoise, finished, noise_for, noised_embedding, sinusoid
from genview.generators.unclip_weights import UnclipParts, check_layout, find_weights, read_parts

DECODED_AT_ONCE = 4
"""Latents decoded together: at 768 px the VAE, not the UNet, decides how much memory is needed."""


@dataclass(frozen=True)
class UnclipSettings:
    """Stable unCLIP as the paper ran it: 20 steps of PNDM at 768 px with guidance 10, no prompt, kept at 512 px.

    `weights` is a folder in the layout of diffusers or an id on the Hugging Face hub (at `revision`, where
    given); empty, the known sources are tried in order. `size` is the side in pixels at which views are made
    (the network's own where None) and `save_size` the side at which they are kept. `precision: auto` is
    bfloat16 on a GPU that has it, float16 on one that has not, float32 elsewhere.
    """

    kind: Literal["unclip"] = "unclip"
    weights: str = ""
    prompt: str = ""
    steps: int = 20
    guidance: float = 10.0
    size: int | None = None
    save_size: int = 512
    solver: Literal["pndm", "ddim", "dpm", "unipc"] = "pndm"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch: int = 8
    revision: str | None = None

    def load(self, device: torch.device | str) -> Unclip:
        """Find and read the weights, and encode the prompt.

        Raises:
            UserError: a number is out of range, transformers is not installed, or the weights cannot be had or are
                not those of a Stable unCLIP.
        """
        if min(self.steps, self.save_size, self.batch) < 1:
            raise UserError("generator.steps, generator.save_size and generator.batch should be at least 1.")
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("Stable unCLIP needs transformers: pip install 'genview[unclip]'.") from error
        folder, name = find_weights(self.weights, self.revision)
        check_layout(folder)
        dtype = _dtype(self.precision, torch.device(device))
        parts = read_parts(folder, f"unclip/{name}/image_encoder", self.prompt, self.solver, dtype)
        return Unclip(f"unclip/{name}", parts, self).to(device)


class Unclip:
    """A `Generator` of views from CLIP embeddings, with Stable unCLIP's H (1024-d) or L (768-d) variant."""

    encoder: ClipTower

    def __init__(self, name: str, parts: UnclipParts, settings: UnclipSettings) -> None:
        self.name = name
        self.size = settings.save_size
        self.settings = settings
        self.encoder = parts.encoder
        self._parts = parts
        self._unet, self._vae, self._text = parts.unet, parts.vae, parts.text
        stride = 2 ** (len(self._vae.config.block_out_channels) - 1)
        side = (settings.size or self._unet.config.sample_size * stride) // stride
        self._latent_shape = (self._unet.config.in_channels, side, side)
        if settings.size and settings.size != side * stride:
            raise UserError(f"generator.size is {settings.size}; it should be a multiple of {stride} pixels.")

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._unet.device
        return device

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self.encoder.to(device)
        self._unet.to(device)
        self._vae.to(device)
        self._text = self._text.to(device)
        return self

    def exact(self) -> Unclip:
        """Return this generator in float32; see `Generator.exact`."""
        if self._unet.dtype == torch.float32:
            return self
        other = copy.copy(self)
        other._unet, other._vae = (copy.deepcopy(net).float() for net in (self._unet, self._vae))
        other._text = self._text.float()
        return other

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row; see `Generator.sample`."""
        assert texts is None
        embedding_noise = noise_for(seeds, condition.shape[1:], "embedding")
        latents = noise_for(seeds, self._latent_shape, "latent")
        images = self.sample_from(condition, level, guidance, embedding_noise, latents)
        return finished(images, self.size).cpu()

    @torch.no_grad()
    def sample_from(
        self, condition: Tensor, level: Tensor, guidance: Tensor, embedding_noise: Tensor, latents: Tensor
    ) -> Tensor:
        """Make one view a row from given noise, as diffusers' own pipeline would with each row in its own call.

        Args:
            condition: embeddings B×E.
            level: noise levels B, 0…999.
            guidance: scales B; where all are 1 the UNet runs on half as many rows.
            embedding_noise: standard normal B×E.
            latents: standard normal B×C×h×w.

        Returns:
            float32 images B×3×H×W, not clamped, for a range of [-1, 1], on the generator's device.
        """
        parts, level = self._parts, level.cpu()
        noised = noised_embedding(
            condition.cpu(), level, embedding_noise.cpu(), parts.alphas_cumprod, mean=parts.mean, std=parts.std
        )
        known = torch.cat([noised, sinusoid(level, noised.shape[1])], dim=1).to(self._device)
        guided = bool((guidance != 1).any())

        def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            if not guided:
                return self._predict(x, t, known, self._text[1:]), None
            # Nothing known is a vector of zeros, its level included: that is what training dropped it to.
            both = torch.cat([torch.zeros_like(known), known])
            unconditional, conditional = self._predict(torch.cat([x, x]), t, both, self._text).chunk(2)
            return conditional, unconditional

        latents = latents.to(self._device, torch.float32)
        return self._decode(denoise(predict, parts.scheduler, latents, self.settings.steps, guidance))

    def _predict(self, x: Tensor, t: Tensor, known: Tensor, text: Tensor) -> Tensor:
        """UNet on B rows of x and of condition with level; `text` holds as many prompts as x has equal parts."""
        dtype = self._unet.dtype
        text = text.repeat_interleave(len(x) // len(text), dim=0)
        found = self._unet(x.to(dtype), t, encoder_hidden_states=text, class_labels=known.to(dtype))
        prediction: Tensor = found.sample.float()
        return prediction

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = (latents / self._vae.config.scaling_factor).to(self._vae.dtype)
        return torch.cat([self._vae.decode(part).sample.float() for part in scaled.split(DECODED_AT_ONCE)])


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
