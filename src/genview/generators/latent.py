"""What every latent diffusion backend shares: the options of sampling, and the way from noise to images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from genview.errors import UserError
from genview.generators.sampler import Course, Step, denoise
from genview.generators.unet import Known, Unet
from genview.seeds import seed_of

SOLVERS = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Our names of diffusers' schedulers; 'dpm' is DPM-Solver++ 2M, 'lcm' is for networks distilled to few steps."""
DECODED_AT_ONCE = 4
"""Latents decoded together: at 768 px the VAE, not the UNet, decides how much memory is needed."""


@dataclass(frozen=True)
class LatentSettings:
    """Options of every latent diffusion backend.

    `weights` is a folder in the layout of diffusers or an id on the Hugging Face hub (at `revision`, where given).
    `interval` is the share of the steps from which, and to which, predictions are guided. With `reuse` n, one
    step in n runs the whole UNet. `size` is the side in pixels at which views are made (the network's own where
    None) and `save_size` the side at which they are kept. `precision: auto` is bfloat16 on a GPU that has it,
    float16 on one that has not, float32 elsewhere; the embedding's noise is always float32. `batch: auto` finds
    by trial what fits into a GPU. `tiny_vae` names a folder or hub id of an AutoencoderTiny to decode with, and
    `lora` a LoRA (see `read_lora`) that is added to the weights `lora_scale` times.
    """

    weights: str = ""
    prompt: str = ""
    negative: str = ""
    steps: int = 20
    guidance: float = 10.0
    interval: tuple[float, float] = (0.0, 1.0)
    solver: Literal["pndm", "ddim", "dpm", "unipc", "lcm"] = "pndm"
    reuse: int = 1
    size: int | None = None
    save_size: int = 512
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    batch: int | Literal["auto"] = "auto"
    tiny_vae: str = ""
    lora: str = ""
    lora_scale: float = 1.0
    revision: str | None = None

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        batch = 1 if self.batch == "auto" else self.batch
        if min(self.steps, self.save_size, batch, self.reuse) < 1:
            raise UserError("generator.steps, save_size, batch and reuse should be at least 1.")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(f"generator.interval is {list(self.interval)}: write [from, to], 0 <= from <= to <= 1.")


def precision_on(device: torch.device | str, precision: str) -> torch.dtype:
    """Return the type of numbers that `precision` means on a device."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def decoded_by_vae(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents as a UNet sees them with an AutoencoderKL or AutoencoderTiny."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return images


class LatentDiffusion:
    """UNet, solver and decoder, and the way from noise to images.

    Args:
        net: diffusers' UNet.
        decoder: a VAE.
        scheduler: the solver.
        settings: how to sample.
        decode: how the decoder turns latents into images.

    Raises:
        UserError: the size does not suit the networks.
    """

    def __init__(
        self,
        net: Any,
        decoder: Any,
        scheduler: Any,
        settings: LatentSettings,
        decode: Callable[[Any, Tensor], Tensor] = decoded_by_vae,
    ) -> None:
        self.settings, self._decode = settings, decode
        self.unet = Unet(net, reuse=settings.reuse, compiled=settings.compile)
        self.scheduler = scheduler
        self.decoder = decoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.stride = 2 ** (len(decoder.config.block_out_channels) - 1)
        side = (settings.size or net.config.sample_size * self.stride) // self.stride
        self.latent_shape = (int(net.config.in_channels), side, side)
        fold = self.stride * (2 ** (len(net.config.block_out_channels) - 1) if settings.reuse > 1 else 1)
        if settings.size and settings.size % fold:
            raise UserError(f"generator.size is {settings.size}; it should be a multiple of {fold} pixels.")
        self._rows = 0

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        device: torch.device = self.unet.net.device
        return device

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self.unet.net.to(device)
        self.decoder.to(device)
        return self

    def exact(self) -> LatentDiffusion:
        """Return a copy that computes in float32; itself where it does."""
        if self.unet.net.dtype == torch.float32:
            return self
        net, decoder = (copy.deepcopy(part).float() for part in (self.unet.net, self.decoder))
        return LatentDiffusion(net, decoder, self.scheduler, self.settings, self._decode)

    def images(
        self,
        latents: Tensor,
        guidance: Tensor,
        given: Known,
        nothing: Known,
        *,
        seeds: Sequence[int],
        begin: Tensor | None = None,
    ) -> Tensor:
        """Go from noise to images.

        Args:
            latents: B×C×h×w; see `sampler.denoise`.
            guidance: scales B.
            given: what the UNet is told, B rows each.
            nothing: the same for the unconditional half of guidance.
            seeds: B seeds, for solvers that roll dice at every step.
            begin: the step at which each row begins, B; 0 where None.

        Returns:
            float32 images B×3×H×W, not clamped, for a range of [-1, 1], on the networks' device.
        """
        count, settings = len(latents), self.settings
        spare = self._spare(count)
        latents, guidance, begin = (_padded(x, spare) for x in (latents, guidance, begin))
        known = {name: _padded(value, spare).to(self.device) for name, value in given.items()}
        # Nothing that is known comes first, as in diffusers.
        both = {name: torch.stack([_padded(nothing[name], spare).to(self.device), known[name]]) for name in known}
        run = self.unet.begin()

        def predict(x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
            if not step.guided:
                return run(x, step.time, _rows(known, step))[:, : x.shape[1]], None
            twice = run(torch.cat([x, x]), step.time, {k: v.flatten(0, 1) for k, v in _rows(both, step, 1).items()})
            # Some networks predict a variance beside, in channels of its own.
            unconditional, conditional = twice[:, : x.shape[1]].chunk(2)
            return conditional, unconditional

        dice = [torch.Generator().manual_seed(seed_of(seed, "", 0, "solver")) for seed in seeds]
        clean = denoise(
            predict,
            Course(self.scheduler, settings.steps, settings.interval),
            latents.to(self.device, torch.float32),
            guidance,
            begin=begin,
            dice=dice + dice[-1:] * spare,
        )
        return self._decoded(clean[:count])

    def _spare(self, count: int) -> int:
        """How many rows to add: a compiled network would be built anew for every other number of rows."""
        if not self.settings.compile:
            return 0
        self._rows = max(self._rows, count)
        return self._rows - count

    def _decoded(self, latents: Tensor) -> Tensor:
        parts = latents.to(self.decoder.dtype).split(DECODED_AT_ONCE)
        return torch.cat([self._decode(self.decoder, part).float() for part in parts])


def _padded(x: Any, spare: int) -> Any:
    """Repeat the last row `spare` times."""
    return torch.cat([x, x[-1:].expand(spare, *x.shape[1:])]) if spare and x is not None else x


def _rows(known: Known, step: Step, dim: int = 0) -> dict[str, Tensor]:
    if step.rows is None:
        return dict(known)
    return {name: value.index_select(dim, step.rows.to(value.device)) for name, value in known.items()}
