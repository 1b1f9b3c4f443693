"""The lesson of the small generator: noised pixels and a noised code of them in, clean pixels out; no labels."""

from __future__ import annotations

import copy
import errno
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.token_encoder import Code, TokenEncoder
from genview.errors import UserError, writing
from genview.generators.code import fit_code
from genview.generators.embedded import EmbeddedSettings
from genview.generators.generator import Generator
from genview.generators.lesson import Lesson, LessonSettings, below, normal_like, uniform
from genview.generators.token_diffusion import (
    NOTHING_KNOWN,
    Denoiser,
    NetworkSettings,
    NoisedCode,
    Sampling,
    create_unet,
    noised,
    save_layout,
    schedules,
)


@dataclass(frozen=True)
class FitSettings(LessonSettings):
    """How the small generator is trained: see `LessonSettings`, and besides what follows.

    `code_from` windows decide the code. `highest_level` bounds the noise put on the code, of which a share `clean`
    gets none; a share `dropout` of codes is left out, for guidance. `snr` bounds the weight of a loss.
    `start_from` is a generator to start from, 'natural' or a folder that `fit-generator` made: its encoder, its code
    and its network's weights are taken, and no encoder is trained. Where `encoder.detail_channels` asks for more than
    it has, channels are added to its code.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    highest_level: int = 500
    clean: float = 0.15
    dropout: float = 0.1
    snr: float = 100.0
    start_from: str | None = None


class TokenDiffusion(Lesson):
    """The encoder, which stays as it is, and the denoiser; forward is the loss.

    Raises:
        UserError: windows are not whole positions of the code, or `patch` does not divide one.
    """

    def __init__(self, encoder: TokenEncoder, settings: FitSettings) -> None:
        super().__init__()
        position = math.lcm(encoder.stride, encoder.gist_stride)
        if settings.size % position:
            raise UserError(
                f"fit.size is {settings.size}, and a position of this encoder's code has {position} pixels: write a "
                f"multiple of {position}."
            )
        self.denoiser = Denoiser(encoder.requires_grad_(False), create_unet(settings.network, encoder))
        self.settings = settings
        self.pixels, self.noising = schedules()
        self.known_detail = 0

    @property
    def encoder(self) -> TokenEncoder:
        """The frozen encoder."""
        return self.denoiser.encoder

    def train(self, mode: bool = True) -> TokenDiffusion:
        """Switch everything but the encoder."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Losses B for images B×3×S×S in [0, 1]: squared error of x̂₀, weighted by at most `snr`.

        The weight is 1/spread², the precision of what is known without the network, which unifies the targets,
        and is bounded as in min-SNR weighting (Hang et al., 2023), where the precision is that of x_t alone.
        """
        code, level = self.noised_code(images)
        clean = images * 2 - 1
        last, device = len(self.pixels.alphas_cumprod), clean.device
        t = below(last, len(clean), device)
        x = self.pixels.add_noise(clean, normal_like(clean), t)
        guess, spread = self.denoiser.guess(x, t, code)
        error = self.denoiser.correction(x, guess, t, code, level) - (clean - guess) / spread
        weight = (self.settings.snr * spread**2).clamp(max=1)
        losses: Tensor = (error.square() * weight).mean(dim=(1, 2, 3))
        return losses

    def noised_code(self, images: Tensor) -> tuple[NoisedCode, Tensor]:
        """The code with noise of random levels, some clean, some left out; and the levels B of the gist.

        The detail's level is at least the gist's, and half of the images have two such levels, in different places.
        """
        _, code = self.encoder(images)
        settings, count, device = self.settings, len(images), images.device
        level = below(settings.highest_level + 1, count, device)
        clean, dropped = uniform(count, device) < settings.clean, uniform(count, device) < settings.dropout
        level = torch.where(clean, 0, level)
        here, elsewhere = (self._above(level, clean) for _ in range(2))
        detail_level = torch.where(_blobs(code.detail), here, elsewhere)
        noise = Code(*(normal_like(part) for part in code))
        made = noised(code, level, detail_level, noise, self.noising.alphas_cumprod.to(device))
        nothing = dropped.view(-1, 1, 1, 1)
        known = NoisedCode(*(torch.where(nothing, 0.0, part) for part in made))
        return known, torch.where(dropped, NOTHING_KNOWN, level)

    def _above(self, level: Tensor, clean: Tensor) -> Tensor:
        """Levels of the detail, B×1×1×1: from those of the gist up to the highest of all, the lower the likelier."""
        above = (len(self.noising.alphas_cumprod) - 1 - level) * uniform(len(level), level.device) ** 2
        return torch.where(clean, 0, level + above.round().long()).view(-1, 1, 1, 1)

    def prepare(self, windows: Iterable[Tensor]) -> None:
        """Fit the code, or what is wanted beyond the `known_detail` channels that a start's network can read."""
        if self.known_detail < self.encoder.settings.detail_channels:
            fit_code(self.encoder, windows, self.known_detail)

    def compiled_parts(self) -> list[nn.Module]:
        """The UNet."""
        return [self.denoiser.unet]

    def save(self, folder: Path) -> None:
        """Write encoder, UNet and schedulers in the layout of a diffusers pipeline."""
        write_layout(folder, self.encoder, self.denoiser.unet, Sampling())

    def generator(self, folder: Path, device: torch.device) -> Generator:
        """Load it as `kind: embedded` does."""
        return EmbeddedSettings(weights=str(folder.absolute()), size=self.settings.size).load(device)


def write_layout(folder: Path, encoder: TokenEncoder, unet: nn.Module, sampling: Sampling) -> None:
    """Write encoder, UNet and schedulers in the layout of a diffusers pipeline; the UNet stays as it is.

    Raises:
        UserError: the disk is full.
    """
    with writing(folder):
        try:
            save_layout(folder, encoder, copy.deepcopy(unet), sampling)  # it halves what it is given
        except SafetensorError as error:  # its words for what the operating system said
            full = "No space left" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def _blobs(grid: Tensor) -> Tensor:
    """Masks B×1×h×w: smooth shapes in half of the images, true everywhere in the others."""
    coarse = normal_like(grid.new_zeros(len(grid), 1, 3, 3))
    smooth = F.interpolate(coarse, grid.shape[2:], mode="bicubic")
    return (smooth > 0) | (uniform(len(grid), grid.device) < 0.5).view(-1, 1, 1, 1)
