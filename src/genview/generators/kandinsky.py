"""The decoder of Kandinsky 2.2: an unCLIP at 512 px whose condition is an embedding of CLIP ViT-bigG.

Its network knows nothing of noise on the embedding, and reads no text. The noise is unCLIP's own all the same, in
units of each embedding's root mean square, so that a level says how much of the embedding is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.latent import LatentDiffusion, LatentSettings, precision_on
from genview.generators.sampler import finished, noise_for, noised_in_proportion
from genview.generators.weights import check_layout, find_weights, read, read_solver, read_tower

SOURCES = ("kandinsky-community/kandinsky-2-2-decoder",)
PARTS = ("unet", "scheduler", "movq")
PRIORS = ("kandinsky-community/kandinsky-2-2-prior",)
PRIOR_PARTS = ("image_encoder", "image_processor")
FOLDED = 64
"""Sides are a multiple of so many pixels: the decoder folds 8 into one latent, and the network 8 of these."""


@dataclass(frozen=True)
class KandinskySettings(LatentSettings):
    """`weights` is the decoder's repository, `prior` that of the prior, of which the image encoder alone is needed.

    The other options are those of `LatentSettings`; there is no prompt, no `reuse`, no `tiny_vae` and no `lora`.
    """

    kind: Literal["kandinsky"] = "kandinsky"
    prior: str = ""
    solver: Literal["ddim", "dpm", "unipc"] = "dpm"
    guidance: float = 4.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {"steps": 12, "compile": True},
        "fast": {"steps": 10, "interval": (0.1, 0.6), "compile": True},
        "draft": {"steps": 6, "interval": (0.1, 0.6), "save_size": 256},
    }

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range, or an option is given that there is not here.
        """
        super().check()
        given = {"prompt": self.prompt, "negative": self.negative, "tiny_vae": self.tiny_vae, "lora": self.lora}
        if names := [f"generator.{name}" for name, value in given.items() if value]:
            raise UserError(f"Kandinsky's decoder has no use for {', '.join(names)}: leave it out.")
        if self.size is not None and self.size % FOLDED:
            raise UserError(f"generator.size is {self.size}; it should be a multiple of {FOLDED} pixels.")

    def load(self, device: torch.device | str) -> Kandinsky:
        """Find and read the weights.

        Raises:
            UserError: an option does not fit, transformers is not installed, or the weights cannot be had.
        """
        self.check()
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("Kandinsky needs transformers: pip install 'genview[unclip]'.") from error
        import diffusers

        folder, name = find_weights(self.weights, self.revision, SOURCES, PARTS, "Kandinsky's decoder")
        check_layout(folder, "KandinskyV22Pipeline", PARTS)
        prior, _ = find_weights(self.prior, None, PRIORS, PRIOR_PARTS, "Kandinsky's prior", "prior")
        check_layout(prior, "KandinskyV22PriorPipeline", PRIOR_PARTS, "prior")
        dtype = precision_on(device, self.precision)
        tower = read_tower(prior / "image_encoder", prior / "image_processor", dtype)
        unet = read(diffusers.UNet2DConditionModel, folder / "unet", dtype)
        movq = read(diffusers.VQModel, folder / "movq", dtype)
        solver = read_solver(folder / "scheduler", self.solver)
        diffusion = LatentDiffusion(unet, movq, solver, self, decoded_by_movq)
        return Kandinsky(f"kandinsky/{name}", tower, diffusion, self).to(device)


def decoded_by_movq(movq: Any, latents: Tensor) -> Tensor:
    """Decode latents without rounding them to the code book, as Kandinsky was trained."""
    images: Tensor = movq.decode(latents, force_not_quantize=True).sample
    return images


class Kandinsky:
    """A `Generator` of views from CLIP embeddings."""

    encoder: ClipTower

    def __init__(
        self, name: str, encoder: ClipTower, diffusion: LatentDiffusion, settings: KandinskySettings
    ) -> None:
        self.name, self.size, self.settings = name, settings.save_size, settings
        self.encoder, self._diffusion = encoder, diffusion
        self._nothing = encoder.of_nothing().cpu()

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self.encoder.to(device)
        self._diffusion.to(device)
        return self

    def exact(self) -> Kandinsky:
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
        """Make one view a row; see `Generator.sample`. The level is unCLIP's noise level."""
        if texts is not None:
            raise UserError("Kandinsky's decoder reads no text: take prompts out of the file of conditions.")
        embedding_noise = noise_for(seeds, condition.shape[1:], "embedding")
        latents = noise_for(seeds, self._diffusion.latent_shape, "latent")
        images = self.sample_from(condition, level, guidance, embedding_noise, latents, seeds)
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
    ) -> Tensor:
        """Make one view a row from given noise; float32 images B×3×H×W, not clamped, for a range of [-1, 1]."""
        noised = noised_in_proportion(condition.cpu(), level.cpu(), embedding_noise)
        nothing = {"image_embeds": self._nothing.expand_as(noised)}
        return self._diffusion.images(latents, guidance, {"image_embeds": noised}, nothing, seeds=seeds)
