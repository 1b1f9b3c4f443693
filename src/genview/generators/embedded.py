"""The small generators inside the package, and those that `fit-generator` makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.token_encoder import Code, FrozenTokenEncoder, weights_folder
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.sampler import Course, Step, check_levels, denoise, finished, noise_for
from genview.generators.student import Student
from genview.generators.token_diffusion import NOTHING_KNOWN, NoisedCode, load_layout, noised, read_sampling

FOREGROUND = 0.25
"""Of a standard normal variable, 0.4 lies above it."""


@dataclass(frozen=True)
class EmbeddedSettings:
    """`weights` names a model inside the package or the --out folder of `genview fit-generator`.

    `size` is the side of the views, a multiple of 8 pixels; the network is convolutional and was trained on
    windows of 32. The detail of the code gets `pace` times the level of its gist, less of it where the foreground is
    and more elsewhere, as far as `spare` says (0: the same everywhere). `steps` are those that the weights were made
    for where None. With a guidance of 1 the network runs once a step, otherwise twice.
    """

    kind: Literal["embedded"] = "embedded"
    weights: str = "natural"
    size: int = 32
    steps: int | None = None
    guidance: float = 1.0
    pace: float = 2.0
    spare: float = 1.5
    batch: int = 64
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {},
        "fast": {"steps": 1},
        "draft": {"steps": 1},
    }
    """Points of speed against quality, as measured: more than two steps trade class for diversity, as a higher level
    does, and cost more, so there are but two points (see the card of the model inside the package)."""

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
        known = code_with_noise(self.encoder, condition, level, seeds, self.settings, self._noising)
        known, level = NoisedCode(*(part.to(self._device) for part in known)), level.to(self._device)
        latents = noise_for(seeds, (3, self.size, self.size), "latent").to(self._device)
        unknown = NoisedCode(*(torch.zeros_like(part) for part in known))

        def predictions(x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
            conditional = self._predict(x, step.time, known, level)
            if not step.guided:
                return conditional, None
            return conditional, self._predict(x, step.time, unknown, torch.full_like(level, NOTHING_KNOWN))

        x = denoise(predictions, Course(self._solver(), self._steps), latents, guidance)
        return finished(x, self.size).cpu()

    def _predict(self, x: Tensor, t: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        half = self.settings.precision == "bfloat16" or (
            self.settings.precision == "auto" and self._device.type == "cuda"
        )
        times = t.to(self._device).expand(len(x))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            found: Tensor = self._denoiser(x, times, code, level)
        return found.float().clamp(-1, 1)

    def _solver(self) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(self._pixels.config, solver_order=self._order)


def code_with_noise(
    encoder: FrozenTokenEncoder,
    condition: Tensor,
    level: Tensor,
    seeds: Sequence[int],
    settings: EmbeddedSettings,
    noising: Any,
) -> NoisedCode:
    """Noise the gist by its level and the detail by `detail_levels`; on the CPU, so that it is the same anywhere.

    Args:
        encoder: knows the shape of the code.
        condition: its embeddings, B×E.
        level: B whole numbers.
        seeds: one a row.
        settings: its `pace` and `spare` count.
        noising: scheduler of the noise.

    Raises:
        UserError: a level lies outside the schedule.
    """
    abar, level = noising.alphas_cumprod, level.cpu()
    check_levels(level, abar)
    code = encoder.code(condition.float().cpu())
    noise = encoder.code(noise_for(seeds, (condition.shape[1],), "embedding"))
    of_detail = detail_levels(code, level, settings.pace, settings.spare)
    return noised(code, level, of_detail.round().long().clamp(0, len(abar) - 1), noise, abar)


def detail_levels(code: Code, level: Tensor, pace: float, spare: float) -> Tensor:
    """Levels of the detail, B×1×h×w, float32: `pace` times those of the gist, less of it where the foreground is.

    The last channel g of the gist tells foreground from background (see `fit_code`); a place belongs to the
    foreground by m = σ(2 (g − 0.25)), as 0.4 of all places have a g above 0.25: the paper's share. With m̄ the mean
    over an image, its level is pace · level · (1 + 2 spare (m̄ − m)): an image that is the same everywhere gets the
    same noise everywhere, and all images of a level get as much on average.
    """
    member = torch.sigmoid(2 * (code.gist[:, -1:] - FOREGROUND))
    member = F.interpolate(member, code.detail.shape[2:], mode="bilinear")
    return pace * level.view(-1, 1, 1, 1) * (1 + 2 * spare * (member.mean(dim=(2, 3), keepdim=True) - member))
