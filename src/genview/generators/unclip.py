"""Stable unCLIP 2.1: the paper's generator. Models and schedulers are diffusers', the sampling is ours.

The pipeline object of diffusers takes one noise level and one guidance a call; here every row has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.latent import LatentDiffusion, LatentSettings, precision_on
from genview.generators.lora import Lora, named, read_lora
from genview.generators.sampler import finished, noise_for, noised_embedding, sinusoid
from genview.generators.text import TextTower
from genview.generators.weights import (
    check_layout,
    find_weights,
    read_decoder,
    read_scheduler,
    read_solver,
    read_tensors,
    read_text,
    read_tower,
    read_unet,
)

SOURCES = (
    "sd2-community/stable-diffusion-2-1-unclip",
    "stabilityai/stable-diffusion-2-1-unclip",
    "diffusers/stable-diffusion-2-1-unclip-i2i-h",
    "fusing/stable-unclip-2-1-h-img2img",
)
"""Where the H variant has been published, the likeliest first: its makers withdrew their repository in 2025."""

PARTS = (
    "feature_extractor",
    "image_encoder",
    "image_normalizer",
    "image_noising_scheduler",
    "tokenizer",
    "text_encoder",
    "unet",
    "scheduler",
    "vae",
)


@dataclass(frozen=True)
class UnclipSettings(LatentSettings):
    """Stable unCLIP as the paper ran it: 20 steps of PNDM at 768 px with guidance 10, no prompt, kept at 512 px.

    `weights` empty: the known sources are tried in order. The options are those of `LatentSettings`.
    """

    kind: Literal["unclip"] = "unclip"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {"steps": 10, "solver": "dpm", "interval": (0.1, 0.6), "compile": True},
        "fast": {"steps": 10, "solver": "dpm", "interval": (0.1, 0.6), "size": 512, "compile": True},
        "draft": {"steps": 6, "solver": "dpm", "interval": (0.1, 0.6), "size": 512, "reuse": 2, "save_size": 256},
    }
    """Points of speed against quality: what each changes of the paper's setting."""

    def load(self, device: torch.device | str) -> Unclip:
        """Find and read the weights, and encode the prompt.

        Raises:
            UserError: see `read`.
        """
        name, parts = self.read(device)
        return Unclip(name, parts, self).to(device)

    def read(self, device: torch.device | str) -> tuple[str, UnclipParts]:
        """Find and read the weights in the precision for a device, without moving them there; and their name.

        Raises:
            UserError: a number is out of range, transformers is not installed, or the weights cannot be had or are
                not those of a Stable unCLIP.
        """
        self.check()
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("Stable unCLIP needs transformers: pip install 'genview[unclip]'.") from error
        folder, name = find_weights(self.weights, self.revision, SOURCES, PARTS, "Stable unCLIP")
        check_layout(folder, "StableUnCLIPImg2ImgPipeline", PARTS)
        lora = read_lora(self.lora, self.lora_scale)
        return f"unclip/{named(name, lora)}", read_parts(folder, self, lora, device)


@dataclass
class UnclipParts:
    """What is read: `mean` and `std` 1×E of embeddings, `alphas_cumprod` of their noise, and the networks."""

    encoder: ClipTower
    text: TextTower
    mean: Tensor
    std: Tensor
    alphas_cumprod: Tensor
    diffusion: LatentDiffusion


def read_parts(folder: Path, settings: UnclipSettings, lora: Lora | None, device: torch.device | str) -> UnclipParts:
    """Read every part of a checked folder.

    Raises:
        UserError: weights are missing, damaged, incomplete, pickled or of several variants; the prompt is too long.
    """
    import diffusers

    dtype = precision_on(device, settings.precision)
    encoder = read_tower(folder / "image_encoder", folder / "feature_extractor", dtype)
    mean, std = read_tensors(folder / "image_normalizer/diffusion_pytorch_model.safetensors", ["mean", "std"])
    unet = read_unet(folder, dtype, lora)
    takes, gives = unet.config.projection_class_embeddings_input_dim, encoder.width
    if unet.config.class_embed_type != "projection" or takes != 2 * gives or mean.shape[1] != gives:
        raise UserError(
            f"The parts in {folder} do not belong together: image_encoder gives embeddings of {gives} values, so "
            f"unet should take twice as many (it takes {takes}) and image_normalizer as many "
            f"({mean.shape[1]}). Take all parts from one place."
        )
    decoder, solver = (
        read_decoder(folder, settings.tiny_vae, dtype),
        read_solver(folder / "scheduler", settings.solver),
    )
    return UnclipParts(
        encoder=encoder,
        text=read_text(folder, Text(settings.prompt, settings.negative), dtype, lora),
        mean=mean,
        std=std,
        alphas_cumprod=read_scheduler(diffusers.DDPMScheduler, folder / "image_noising_scheduler").alphas_cumprod,
        diffusion=LatentDiffusion(unet, decoder, solver, settings),
    )


class Unclip:
    """A `Generator` of views from CLIP embeddings, with Stable unCLIP's H (1024-d) or L (768-d) variant."""

    encoder: ClipTower

    def __init__(self, name: str, parts: UnclipParts, settings: UnclipSettings) -> None:
        self.name, self.size, self.settings = name, settings.save_size, settings
        self.encoder, self._parts, self._diffusion = parts.encoder, parts, parts.diffusion

    @property
    def precision(self) -> torch.dtype:
        """What its networks compute in."""
        dtype: torch.dtype = self._diffusion.unet.net.dtype
        return dtype

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        for part in (self.encoder, self._parts.text, self._diffusion):
            part.to(device)
        return self

    def exact(self) -> Unclip:
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
        """Make one view a row; see `Generator.sample`. The level is the noise level of unCLIP."""
        embedding_noise = noise_for(seeds, condition.shape[1:], "embedding")
        latents = noise_for(seeds, self._diffusion.latent_shape, "latent")
        images = self.sample_from(condition, level, guidance, embedding_noise, latents, seeds, texts)
        return finished(images, self.size).cpu()

    @torch.no_grad()
    def sample_from(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        embedding_noise: Tensor,
        latents: Tensor,
        seeds: Sequence[int] = (),
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row from given noise, as diffusers' own pipeline would with each row in its own call.

        Args:
            condition: embeddings B×E.
            level: noise levels B, 0…999.
            guidance: scales B.
            embedding_noise: standard normal B×E.
            latents: standard normal B×C×h×w.
            seeds: for solvers that roll dice at every step.
            texts: B texts; the settings' prompt for all where None.

        Returns:
            float32 images B×3×H×W, not clamped, for a range of [-1, 1], on the generator's device.
        """
        parts, level = self._parts, level.cpu()
        noised = noised_embedding(
            condition.cpu(), level, embedding_noise.cpu(), parts.alphas_cumprod, mean=parts.mean, std=parts.std
        )
        known = torch.cat([noised, sinusoid(level, noised.shape[1])], dim=1)
        prompt, negative = parts.text.rows(texts, len(known))
        given = {"encoder_hidden_states": prompt, "class_labels": known}
        # Nothing known is a vector of zeros, its level included: that is what training dropped it to.
        nothing = {"encoder_hidden_states": negative, "class_labels": torch.zeros_like(known)}
        return self._diffusion.images(latents, guidance, given, nothing, seeds=seeds)
