"""Train an image-conditioned generator on a folder of images, without labels."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from genview.encoders.token_encoder import Code, TokenEncoder
from genview.errors import UserError
from genview.generators.code import fit_code
from genview.generators.token_diffusion import (
    NOTHING_KNOWN,
    Denoiser,
    NetworkSettings,
    NoisedCode,
    create_unet,
    noised,
    save_layout,
    schedules,
)
from genview.generators.windows import Windows
from genview.images import ImageSource
from genview.images.order import positions
from genview.seeds import seed_of
from genview.store import sweep, write_state

Tell = Callable[[str, int, int, str], None]
Measured = Callable[[str, float, int], None]
Weights = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class FitSettings:
    """How the generator is trained.

    `samples` counts images seen, `average` bounds the decay of the weights' moving average. Windows of size×size
    pixels are cut from images scaled by a random factor between 1 and `zoom`, never above their own resolution,
    so that one network serves several sizes; `code_from` of them decide the code. `highest_level` bounds the
    noise put on the code, of which a share `clean` gets none; a share `dropout` of codes is left out, for
    guidance. `snr` bounds the weight of a loss.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    size: int = 32
    zoom: float = 2.0
    flip: float = 0.5
    code_from: int = 4096
    samples: int = 150_000
    batch: int = 64
    rate: float = 5e-4
    warmup: int = 500
    average: float = 0.9995
    highest_level: int = 500
    clean: float = 0.15
    dropout: float = 0.1
    snr: float = 100.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int = 1
    save_every: int = 1000
    measure_every: int = 50


class TokenDiffusion(nn.Module):
    """The encoder, which stays as it is, and the denoiser; forward is the loss."""

    def __init__(self, encoder: TokenEncoder, settings: FitSettings) -> None:
        super().__init__()
        self.denoiser = Denoiser(encoder.requires_grad_(False), create_unet(settings.network, encoder))
        self.settings = settings
        self.pixels, self.noising = schedules()

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
        t = torch.randint(0, len(self.pixels.alphas_cumprod), (len(clean),), device=clean.device)
        x = self.pixels.add_noise(clean, torch.randn_like(clean), t)
        guess, spread = self.denoiser.guess(x, t, code)
        error = self.denoiser.correction(x, guess, t, code, level) - (clean - guess) / spread
        weight = (self.settings.snr * spread**2).clamp(max=1)
        losses: Tensor = (error.square() * weight).mean(dim=(1, 2, 3))
        return losses

    def noised_code(self, images: Tensor) -> tuple[NoisedCode, Tensor]:
        """The code with noise of random levels, some clean, some left out; and the levels B of the gist.

        The detail's level is at least the gist's, and in half of the images there is a second one elsewhere.
        """
        _, code = self.encoder(images)
        count, device = len(images), images.device
        level = torch.randint(0, self.settings.highest_level + 1, (count,), device=device)
        clean, dropped = (torch.rand(2, count, device=device) < self._shares.to(device)).unbind()
        level = torch.where(clean, 0, level)
        most = len(self.noising.alphas_cumprod) - 1
        two = (level + (most - level) * torch.rand(2, count, device=device) ** 2 * ~clean).round().long()
        detail_level = torch.where(_blobs(code.detail), *two.view(2, -1, 1, 1, 1))
        noise = Code(*(torch.randn_like(part) for part in code))
        made = noised(code, level, detail_level, noise, self.noising.alphas_cumprod.to(device))
        nothing = dropped.view(-1, 1, 1, 1)
        made = NoisedCode(*(torch.where(nothing, 0.0, part) for part in made))
        return made, torch.where(dropped, NOTHING_KNOWN, level)

    @property
    def _shares(self) -> Tensor:
        return torch.tensor([[self.settings.clean], [self.settings.dropout]])


def _blobs(detail: Tensor) -> Tensor:
    """Masks B×1×h×w: smooth shapes in half of the images, true everywhere in the others."""
    coarse = torch.randn(len(detail), 1, 3, 3, device=detail.device)
    smooth = F.interpolate(coarse, detail.shape[2:], mode="bicubic")
    return (smooth > 0) | (torch.rand(len(detail), 1, 1, 1, device=detail.device) < 0.5)


def fit(
    source: ImageSource,
    encoder: TokenEncoder,
    settings: FitSettings,
    folder: Path,
    *,
    seed: int,
    tell: Tell,
    measured: Measured,
) -> None:
    """Train and write the generator to `folder`, continuing from `folder/training.pt` where there is one.

    Args:
        source: the images.
        encoder: a trunk that is trained and stays as it is; its code is fitted here.
        settings: the training.
        folder: where the finished generator goes, and the state of an unfinished one.
        seed: the run's seed.
        tell: progress.
        measured: takes (name, value, step).
    """
    device = torch.device(_device(settings))
    torch.manual_seed(seed_of(seed, "", 0, "generator weights"))
    model = TokenDiffusion(encoder, settings).to(device).train()
    average = AveragedModel(model, multi_avg_fn=_moving_average(settings.average))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        settings.rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    run = Fitting(model, average, optimizer, settings, folder / "training.pt", seed)
    if not run.resume(device):
        run.start(source, device)
    run.run_through(source, device, tell, measured)
    averaged = average.module
    assert isinstance(averaged, TokenDiffusion)
    save_layout(folder, averaged.encoder, averaged.denoiser.unet)


@dataclass
class Fitting:
    """The training's state and its steps."""

    model: TokenDiffusion
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    settings: FitSettings
    checkpoint: Path
    seed: int
    step: int = 0

    @property
    def steps(self) -> int:
        """Length of the training."""
        return max(1, self.settings.samples // self.settings.batch)

    def start(self, source: ImageSource, device: torch.device) -> None:
        """Fit the code to the windows of the first steps."""
        steps = -(-min(self.settings.code_from, len(source)) // self.settings.batch)
        windows = (pixels.to(device).float() / 255 for pixels in self._batches(source, min(steps, self.steps)))
        fit_code(self.model.encoder, windows)
        self.average.module.load_state_dict(self.model.state_dict())

    def run_through(self, source: ImageSource, device: torch.device, tell: Tell, measured: Measured) -> None:
        """Take every step that is left."""
        total, since, losses = self.steps, time.perf_counter(), []
        for pixels in self._batches(source, self.steps):
            losses.append(self.take_step(pixels.to(device).float() / 255))
            if self.step % self.settings.measure_every == 0 or self.step == total:
                rate = len(losses) * self.settings.batch / (time.perf_counter() - since)
                loss = float(torch.stack(losses).mean())
                self._check(loss)
                measured("fit/loss", loss, self.step)
                measured("fit/images_per_second", rate, self.step)
                tell("fit-generator", self.step, total, f"loss {loss:.4f} · {rate:.0f} images/s")
                since, losses = time.perf_counter(), []
            if self.step % self.settings.save_every == 0 or self.step == total:
                self.save()

    def take_step(self, images: Tensor) -> Tensor:
        """One optimizer step on images B×3×S×S in [0, 1]; returns the mean loss.

        The step's noise comes from the seed and the step's number, so a resumed training draws the same.
        """
        torch.manual_seed(seed_of(self.seed, "", self.step, "noise"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._share_of_rate()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=_half(self.settings, images.device)):
            loss: Tensor = self.model(images).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.detach()

    def _share_of_rate(self) -> float:
        """Linear warm-up, then linear decay to zero over the second half."""
        left = 1 - self.step / self.steps
        return min(1.0, (self.step + 1) / self.settings.warmup, 2 * left)

    def _check(self, loss: float) -> None:
        if loss != loss or loss == float("inf"):
            raise UserError(
                f"The generator's loss is not finite at step {self.step}. The state of an earlier step is kept in "
                f"{self.checkpoint}: lower fit.rate, or use precision float32."
            )

    def save(self) -> None:
        """Write the state, all or nothing."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        write_state(self.checkpoint, state)

    def resume(self, device: torch.device) -> bool:
        """Read the state, and say whether there was one.

        Raises:
            UserError: the file is damaged.
        """
        sweep(self.checkpoint.parent)
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"{self.checkpoint} cannot be continued ({first}). Delete it to start anew.") from error
        return True

    def _batches(self, source: ImageSource, last: int) -> Iterator[Tensor]:
        settings = self.settings
        if len(source) < settings.batch:
            raise UserError(
                f"There are {len(source)} images, fewer than one batch of {settings.batch}: "
                "a generator needs some thousands of images, and fit.batch at most their number."
            )
        order = positions(len(source), settings.batch, first=self.step, last=last, seed=self.seed, rank=0, world=1)
        loader: DataLoader[Tensor] = DataLoader(
            Windows(source, settings.size, settings.zoom, settings.flip, self.seed),
            batch_sampler=order,  # positions are (epoch, index) and need no length
            num_workers=settings.workers,
        )
        yield from loader


def _moving_average(decay: float) -> Callable[[Weights, Weights, Tensor | int], None]:
    """Average over the last ninth of the steps so far, and at most over 1/(1 − decay) steps.

    A decay that is constant from the start would keep the first, random weights in the average for thousands of
    steps: 0.9995 still gives them 61 % after 1000.
    """

    @torch.no_grad()
    def update(averaged: Weights, current: Weights, count: Tensor | int) -> None:
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


def _device(settings: FitSettings) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device


def _half(settings: FitSettings, device: torch.device) -> bool:
    return settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
