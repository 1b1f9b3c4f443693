"""Teach a Stable unCLIP one's own images: low-rank updates of its UNet's attention, trained without labels or texts.

As unCLIP itself is trained: the latents of an image are noised, and the UNet is told the image's noised embedding and
the level of that noise, exactly as `Unclip` tells it. What comes out is a file for `generator.lora`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.errors import UserError, writing
from genview.generators.lesson import Lesson, LessonSettings, below, normal_like, uniform
from genview.generators.lora import USUAL
from genview.generators.sampler import noised_embedding, sinusoid
from genview.generators.unclip import Unclip, UnclipSettings
from genview.store import write_bytes


@dataclass(frozen=True)
class LoraFitSettings(LessonSettings):
    """How a LoRA is trained: see `LessonSettings`; what is trained of the UNet, and what it is told.

    Of every layer of attention whose name ends as in `layers`, the weights W become W + `alpha`/`rank` · B·A, with
    `rank` rows of A and columns of B. `highest_level` bounds the noise put on the embedding, of which a share `clean`
    gets that of level 0 alone; a share `dropout` of embeddings is left out, for guidance. `checkpointing` computes
    activations twice instead of keeping them: about a third slower, in a fraction of the memory.
    """

    size: int = 768
    zoom: float = 1.0
    samples: int = 10_000
    batch: int = 4
    rate: float = 1e-4
    warmup: int = 100
    save_every: int = 250
    sample_every: int = 250
    rank: int = 16
    alpha: float = 16.0
    layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    highest_level: int = 500
    clean: float = 0.15
    dropout: float = 0.1
    checkpointing: bool = True

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        if self.rank < 1 or self.alpha <= 0 or not self.layers:
            raise UserError("lora.rank should be at least 1, lora.alpha above 0, and lora.layers name some layers.")


class LowRank(nn.Module):
    """Low-rank update of a linear layer (LoRA: Hu et al., 2022), which it joins as a forward hook.

    At the start it is zero. Its own numbers are float32 and are rounded to the layer's precision for computing.
    """

    def __init__(self, layer: nn.Linear, rank: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.normal_(self.down, std=layer.in_features**-0.5)
        layer.register_forward_hook(self)

    def forward(self, _layer: nn.Module, given: tuple[Tensor], found: Tensor) -> Tensor:
        """Return what the layer found, with the update's share added."""
        x = given[0]
        share = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return found + (self.factor * share).to(found.dtype)


class UnclipLora(Lesson):
    """A frozen Stable unCLIP and the updates of its UNet; forward is the loss, and only the updates are trained.

    Args:
        generator: which Stable unCLIP, in what precision, and the prompts it will be used with.
        settings: what is trained of it.
        device: where it will be; 'auto' precision depends on it.

    Raises:
        UserError: the weights cannot be had, the UNet lacks such layers, or a setting does not suit.
    """

    last_file: ClassVar[str] = USUAL

    def __init__(self, generator: UnclipSettings, settings: LoraFitSettings, device: torch.device | str) -> None:
        super().__init__()
        settings.check()
        if generator.lora:
            raise UserError("A LoRA is trained for weights as they were published: leave generator.lora out.")
        self.settings, side = settings, settings.size
        self._generator = replace(generator, tiny_vae="", reuse=1, compile=False, size=side, save_size=side)
        self._name, self._parts = self._generator.read(device)
        if self._parts.diffusion.unet.net.dtype == torch.float16:
            raise UserError("Gradients would be lost in float16: set generator.precision to bfloat16 or float32.")
        self.unet, self.vae = self._parts.diffusion.unet.net, self._parts.diffusion.decoder
        self.adapters = nn.ModuleDict(dict(self._adapted()))
        if settings.checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.scheduler = _training_scheduler(self._parts.diffusion.scheduler)
        self.train()

    def train(self, mode: bool = True) -> UnclipLora:
        """Switch all but the VAE."""
        super().train(mode)
        self.vae.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Losses B for images B×3×S×S in [0, 1]: squared error of what the weights' makers trained them to predict.

        Raises:
            UserError: S does not suit the VAE.
        """
        latents, (known, text) = self._latents(images), self._told(images)
        noise = normal_like(latents)
        t = below(self.scheduler.config.num_train_timesteps, len(images), images.device)
        x, dtype = self.scheduler.add_noise(latents, noise, t), self.unet.dtype
        found = self.unet(x.to(dtype), t, text.to(dtype), class_labels=known.to(dtype)).sample
        losses: Tensor = (found.float() - self._wanted(latents, noise, t)).square().mean(dim=(1, 2, 3))
        return losses

    def kept(self) -> dict[str, Tensor]:
        """Return the state of the updates: all else is in the weights' own files."""
        return {f"adapters.{name}": value for name, value in self.adapters.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write the updates in diffusers' naming, B times α/r: readers need not know α."""
        state: dict[str, Tensor] = {}
        for layer, adapter in self._by_layer():
            state[f"unet.{layer}.lora.down.weight"] = adapter.down
            state[f"unet.{layer}.lora.up.weight"] = adapter.factor * adapter.up
        held = {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
        with writing(folder):
            write_bytes(folder / USUAL, safetensors.torch.save(held, {"format": "pt"}))

    def generator(self, folder: Path, device: torch.device) -> Unclip:  # noqa: ARG002 - none is needed
        """Return the generator with the updates as they are now, without reading the weights again."""
        return Unclip(self._name, self._parts, self._generator).to(device)

    def _adapted(self) -> Iterator[tuple[str, LowRank]]:
        endings = tuple(f".{layer}" for layer in self.settings.layers)
        linear = {name: layer for name, layer in self.unet.named_modules() if isinstance(layer, nn.Linear)}
        attention = [name for name in linear if ".attn" in name]
        for ending in endings:
            if not any(name.endswith(ending) for name in attention):
                raise UserError(f"The UNet's attention has no linear layer '{ending[1:]}': mend lora.layers.")
        for name in attention:
            if name.endswith(endings):  # "/" for the dots, which names of modules may not have
                factor = self.settings.alpha / self.settings.rank
                yield name.replace(".", "/"), LowRank(linear[name], self.settings.rank, factor)

    def _by_layer(self) -> Iterator[tuple[str, LowRank]]:
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, LowRank)
            yield name.replace("/", "."), adapter

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """Draw latents B×C×h×w from what the VAE makes of images; float32."""
        if images.shape[-1] % (stride := self._parts.diffusion.stride):
            raise UserError(f"This VAE takes images whose side is a multiple of {stride} pixels: mend size.")
        pixels = (2 * images - 1).to(self.vae.dtype, memory_format=torch.channels_last)
        found = self.vae.encode(pixels).latent_dist
        drawn: Tensor = found.mean.float() + found.std.float() * normal_like(found.mean.float())
        scale: float = self.vae.config.scaling_factor
        return drawn * scale

    @torch.no_grad()
    def _told(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Noised embeddings with their levels, B×2E in float32, and texts B×N×D; some are those of nothing known."""
        parts, count, device, settings = self._parts, len(images), images.device, self.settings
        embedding = parts.encoder.to(device).encode(images).embedding
        level = below(settings.highest_level + 1, count, device)
        level = torch.where(uniform(count, device) < settings.clean, 0, level)
        mean, std, noise = parts.mean.to(device), parts.std.to(device), normal_like(embedding)
        noised = noised_embedding(embedding, level, noise, parts.alphas_cumprod, mean=mean, std=std)
        known = torch.cat([noised, sinusoid(level, noised.shape[1])], dim=1)
        prompt, negative = parts.text.to(device).rows(None, count)
        dropped = uniform(count, device) < settings.dropout
        return torch.where(dropped[:, None], 0.0, known), torch.where(dropped[:, None, None], negative, prompt)

    def _wanted(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        if self.scheduler.config.prediction_type == "sample":
            return latents
        velocity: Tensor = self.scheduler.get_velocity(latents, noise, t)
        return velocity


def _training_scheduler(solver: Any) -> Any:
    """The published noise schedule, and what its network predicts, for training."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(solver.config)
