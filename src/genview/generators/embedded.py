"""The small generators inside the package, and those that `fit-generator` makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from genview.encoders.token_encoder import FrozenTokenEncoder, weights_folder
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.sampler import Course, Step, denoise, finished, noise_for, noised_embedding
from genview.generators.student import Student
from genview.generators.token_diffusion import NOTHING_KNOWN, load_layout, read_sampling


@dataclass(frozen=True)
class EmbeddedSettings:
    """`weights` names a model inside the package or the --out folder of `genview fit-generator`.

    `size` is the side of the views, a multiple of 8 pixels; the network is convolutional and was trained on
    windows of 32. `steps` are those that the weights were made for where None. With a guidance of 1 the network runs
    once a step, otherwise twice.
    """

    kind: Literal["embedded"] = "embedded"
    weights: str = "natural"
    size: int = 32
    steps: int | None = None
    guidance: float = 1.0
    batch: int = 64
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {},
        "fast": {"steps": 1},
        "draft": {"steps": 1},
    }
    """Points of speed against quality, as measured: more than two steps make views of the model inside the package
    worse, so there are but two points (see its card)."""

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
        self.encoder: FrozenTokenEncoder
        self.encoder, self._denoiser, self._pixels, self._noising = load_layout(folder, settings.size)
        sampling = read_sampling(folder)
        self._steps, self._order = settings.steps or sampling.steps, 2
        self.settings = replace(settings, steps=self._steps)
        if sampling.distilled:
            self._denoiser, self._order = Student(self.encoder.model, self._denoiser.unet, sampling.steps), 1
            if self._steps != sampling.steps:
                raise UserError(
                    f"The generator in {folder} was distilled to {sampling.steps} steps and knows no other number: "
                    f"leave generator.steps ({settings.steps}) and generator.preset out."
                )
        self._denoiser.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._device = torch.device(device)
        self.encoder.to(device)
        self._denoiser.to(device)
        return self

    def exact(self) -> Embedded:
        """Return this generator in float32; see `Generator.exact`."""
        other = copy.copy(self)
        other.settings = replace(self.settings, precision="float32")
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
        if texts is not None:
            raise UserError("The embedded generator reads no text: take prompts out of the file of conditions.")
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

        def predictions(x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
            conditional = self._predict(x, step.time, known, level)
            if not step.guided:
                return conditional, None
            unknown = torch.full_like(level, NOTHING_KNOWN)
            return conditional, self._predict(x, step.time, torch.zeros_like(known), unknown)

        x = denoise(predictions, Course(self._solver(), self._steps), latents, guidance)
        return finished(torch.pixel_shuffle(x, patch), self.size).cpu()

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

        return DPMSolverMultistepScheduler.from_config(self._pixels.config, solver_order=self._order)
