"""Image-to-image on any Stable Diffusion: the source's own latents, noised part of the way and denoised again.

Views keep the layout of their source. The knob is the strength (SDEdit: Meng et al., 2022; Hugging Face's name for
it): which share of the steps is run. Every row has its own, so rows begin at different steps of one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from genview.encoders import load_frozen
from genview.encoders.frozen import Encoded, FrozenEncoder
from genview.encoders.tower import fitted
from genview.errors import UserError
from genview.generators.generator import LEVELS, Text
from genview.generators.latent import LatentDiffusion, LatentSettings, precision_on
from genview.generators.lora import named, read_lora
from genview.generators.sampler import finished, noise_for, timesteps
from genview.generators.text import TextTower
from genview.generators.weights import (
    check_layout,
    find_weights,
    read,
    read_decoder,
    read_solver,
    read_text,
    read_unet,
)

SOURCES = ("stable-diffusion-v1-5/stable-diffusion-v1-5",)
PARTS = ("tokenizer", "text_encoder", "unet", "scheduler", "vae")


@dataclass(frozen=True)
class Img2ImgSettings(LatentSettings):
    """Any Stable Diffusion 1 or 2 with a text encoder; the options are those of `LatentSettings`.

    A level of 0 is the strength `lowest` and one of 1000 would be `highest`. Without a prompt there is nothing to
    guide towards, so guidance is 1 unless given. `tokens_from` is the frozen encoder whose tokens tell the
    foreground (see `encoders.load_frozen`): the condition here is the source's latents, which know no objects.
    """

    kind: Literal["img2img"] = "img2img"
    solver: Literal["ddim", "dpm", "unipc", "lcm"] = "dpm"
    guidance: float = 1.0
    lowest: float = 0.3
    highest: float = 1.0
    tokens_from: str = "convnext_base.clip_laion2b_augreg"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {"steps": 12, "compile": True},
        "fast": {"steps": 8, "compile": True},
        "draft": {"steps": 6, "reuse": 2, "save_size": 256},
    }

    def strength(self, level: Tensor) -> Tensor:
        """Strength in (0, 1] of levels 0…999: lowest + level/1000 · (highest - lowest)."""
        return self.lowest + level.double() / LEVELS * (self.highest - self.lowest)

    def begin(self, level: Tensor) -> Tensor:
        """Step at which rows of these levels begin: the last share `strength` of the steps is run, rounded down."""
        # Not quite rounded down: 0.3 · 10 is a little less than 3 in floating point.
        return self.steps - (self.steps * self.strength(level) + 1e-9).long().clamp(max=self.steps)

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range, or the least strength runs no step at all.
        """
        super().check()
        if not 0 < self.lowest <= self.highest <= 1:
            raise UserError(
                f"generator.lowest and highest are strengths, 0 < lowest <= highest <= 1; they are {self.lowest} and "
                f"{self.highest}."
            )
        if self.steps * self.lowest < 1:
            raise UserError(
                f"A strength of {self.lowest} runs none of {self.steps} steps: raise generator.steps to at least "
                f"{-(-1 // self.lowest):.0f}, or generator.lowest."
            )

    def load(self, device: torch.device | str) -> Img2Img:
        """Find and read the weights, and encode the prompt.

        Raises:
            UserError: a number is out of range, transformers is not installed, or the weights cannot be had.
        """
        self.check()
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("Stable Diffusion needs transformers: pip install 'genview[unclip]'.") from error
        folder, name = find_weights(self.weights, self.revision, SOURCES, PARTS, "Stable Diffusion")
        check_layout(folder, "StableDiffusionPipeline", PARTS)
        return _read(folder, f"img2img/{name}", self, device).to(device)


def _read(folder: Path, name: str, settings: Img2ImgSettings, device: torch.device | str) -> Img2Img:
    import diffusers

    dtype, lora = precision_on(device, settings.precision), read_lora(settings.lora, settings.lora_scale)
    unet, vae = read_unet(folder, dtype, lora), read(diffusers.AutoencoderKL, folder / "vae", dtype)
    decoder = read_decoder(folder, settings.tiny_vae, dtype) if settings.tiny_vae else vae
    diffusion = LatentDiffusion(unet, decoder, read_solver(folder / "scheduler", settings.solver), settings)
    text = read_text(folder, Text(settings.prompt, settings.negative), dtype, lora)
    tower = load_frozen(settings.tokens_from)
    encoder = LatentEncoder(f"{name}/vae with {tower.name}", vae, tower, diffusion.latent_shape[1] * diffusion.stride)
    return Img2Img(named(name, lora), diffusion, text, encoder, settings)


class LatentEncoder:
    """A `FrozenEncoder` whose embedding is the VAE's latents, flattened; tokens come from another frozen encoder.

    Args:
        name: says which two.
        vae: an AutoencoderKL.
        tower: gives the tokens.
        size: side in pixels at which images are encoded.
    """

    def __init__(self, name: str, vae: Any, tower: FrozenEncoder, size: int) -> None:
        self.name, self.size, self._vae, self._tower = name, size, vae, tower

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; see `FrozenEncoder`."""
        seen = self._tower.encode(images)
        pixels = fitted(images, self.size).to(self._vae.device, self._vae.dtype)
        latents = self._vae.encode(2 * pixels - 1).latent_dist.mode() * self._vae.config.scaling_factor
        return Encoded(seen.tokens, latents.float().flatten(1), seen.grid)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._vae.to(device)
        self._tower.to(device)
        return self


class Img2Img:
    """A `Generator` of views from the latents of their source."""

    def __init__(
        self,
        name: str,
        diffusion: LatentDiffusion,
        text: TextTower,
        encoder: LatentEncoder,
        settings: Img2ImgSettings,
    ) -> None:
        self.name, self.size, self.settings = name, settings.save_size, settings
        self.encoder: FrozenEncoder = encoder
        self._diffusion, self._text = diffusion, text

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        for part in (self.encoder, self._text, self._diffusion):
            part.to(device)
        return self

    def exact(self) -> Img2Img:
        """Return this generator in float32; see `Generator.exact`."""
        other = copy.copy(self)
        other._diffusion = self._diffusion.exact()
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
        """Make one view a row; see `Generator.sample`. `Img2ImgSettings.strength` says what a level is."""
        latents = noise_for(seeds, self._diffusion.latent_shape, "latent")
        images = self.sample_from(condition, level, guidance, latents, seeds, texts)
        return finished(images, self.size).cpu()

    @torch.no_grad()
    def sample_from(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        noise: Tensor,
        seeds: Sequence[int] = (),
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row from given noise B×C×h×w; float32 images B×3×H×W, not clamped, about [-1, 1].

        Raises:
            UserError: a level lies outside 0…999.
        """
        level = level.cpu()
        if int(level.min()) < 0 or int(level.max()) >= LEVELS:
            raise UserError(f"Levels go from 0 to {LEVELS - 1}; found {int(level.min())} to {int(level.max())}.")
        begin, scheduler = self.settings.begin(level), self._diffusion.scheduler
        kept = scheduler.alphas_cumprod[timesteps(scheduler, self.settings.steps)[begin]].view(-1, 1, 1, 1)
        latents = kept.sqrt() * condition.cpu().float().view_as(noise) + (1 - kept).sqrt() * noise
        prompt, negative = self._text.rows(texts, len(noise))
        given, nothing = ({"encoder_hidden_states": words} for words in (prompt, negative))
        return self._diffusion.images(latents, guidance, given, nothing, seeds=seeds, begin=begin)
