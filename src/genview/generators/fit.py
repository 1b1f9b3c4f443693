"""Train an image-conditioned generator on a folder of images, without labels."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from genview.encoders.token_encoder import TokenEncoder
from genview.errors import UserError
from genview.generators.token_diffusion import (
    NOTHING_KNOWN,
    NetworkSettings,
    create_unet,
    fold,
    predict,
    save_layout,
    schedules,
)
from genview.images import ImageSource, UnreadableImage, square
from genview.images.order import positions
from genview.seeds import seed_of
from genview.store import appearing, sweep

Tell = Callable[[str, int, int, str], None]
Measured = Callable[[str, float, int], None]


@dataclass(frozen=True)
class FitSettings:
    """How the generator is trained.

    `samples` counts images seen. Windows of size×size pixels are cut from images scaled by a random factor
    between 1 and `zoom`, never above their own resolution, so that one network serves several sizes.
    `highest_level` bounds the noise put on the condition, of which a share `clean` gets none; a share `dropout`
    of conditions is left out, for guidance. `snr` is the γ of min-SNR weighting (Hang et al., 2023).
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    size: int = 32
    zoom: float = 2.0
    flip: float = 0.5
    samples: int = 1_500_000
    batch: int = 64
    rate: float = 5e-4
    warmup: int = 500
    average: float = 0.9995
    highest_level: int = 500
    clean: float = 0.15
    dropout: float = 0.1
    snr: float = 5.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int = 1
    save_every: int = 1000
    measure_every: int = 50


class Windows(Dataset[Tensor]):
    """Random windows uint8 3×S×S by (epoch, index), the same for the same seed, epoch and key."""

    def __init__(self, source: ImageSource, settings: FitSettings, seed: int) -> None:
        self.source, self.settings, self.seed = source, settings, seed
        self.to_tensor = v2.PILToTensor()

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        epoch, i = position
        key = self.source.key(i)
        chance = random.Random(seed_of(self.seed, key, epoch, "window"))
        image = self._readable(i)
        size = self.settings.size
        most = max(1.0, min(self.settings.zoom, min(image.size) / size))
        image = square(image, round(size * chance.uniform(1.0, most)))
        left, top = (chance.randint(0, image.width - size) for _ in range(2))
        image = image.crop((left, top, left + size, top + size))
        if chance.random() < self.settings.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels: Tensor = self.to_tensor(image)
        return pixels

    def _readable(self, i: int) -> Image.Image:
        for step in range(len(self.source)):
            try:
                return self.source.image((i + step) % len(self.source))
            except UnreadableImage:
                continue
        raise UserError("None of the images can be read.")


class TokenDiffusion(nn.Module):
    """The encoder, of which the condition's projection is trained, and the UNet; forward is the loss."""

    def __init__(self, encoder: TokenEncoder, settings: FitSettings) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.trunk.requires_grad_(False)
        self.unet = create_unet(settings.network, encoder.settings.channels)
        self.settings = settings
        self.pixels, self.noising = schedules()

    def train(self, mode: bool = True) -> TokenDiffusion:
        """Switch everything but the frozen trunk."""
        super().train(mode)
        self.encoder.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Losses B of v-prediction (Salimans and Ho, 2022) with min-SNR weights, images B×3×S×S in [0, 1]."""
        condition, level = self.noised_condition(images)
        x = fold(images)
        t = torch.randint(0, len(self.pixels.alphas_cumprod), (len(x),), device=x.device)
        noise = torch.randn_like(x)
        noisy, target = self.pixels.add_noise(x, noise, t), self.pixels.get_velocity(x, noise, t)
        error = (predict(self.unet, noisy, t, condition, level) - target).float().square().mean(dim=(1, 2, 3))
        abar: Tensor = self.pixels.alphas_cumprod.to(x.device)[t]
        snr = abar / (1 - abar)
        losses: Tensor = error * snr.clamp(max=self.settings.snr) / (snr + 1)
        return losses

    def noised_condition(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The condition with noise of random levels, some clean, some left out; and the levels B."""
        _, condition = self.encoder(images)
        condition = condition.float()
        count, device = len(images), images.device
        level = torch.randint(0, self.settings.highest_level + 1, (count,), device=device)
        level = torch.where(torch.rand(count, device=device) < self.settings.clean, 0, level)
        noised = self.noising.add_noise(condition, torch.randn_like(condition), level)
        dropped = torch.rand(count, device=device) < self.settings.dropout
        noised = torch.where(dropped[:, None, None, None], 0.0, noised)
        return noised, torch.where(dropped, NOTHING_KNOWN, level)


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
        encoder: a trunk that is trained and stays as it is; the condition's projection is trained here.
        settings: the training.
        folder: where the finished generator goes, and the state of an unfinished one.
        seed: the run's seed.
        tell: progress.
        measured: takes (name, value, step).
    """
    device = torch.device(_device(settings))
    torch.manual_seed(seed_of(seed, "", 0, "generator weights"))
    model = TokenDiffusion(encoder, settings).to(device).train()
    # Weights are averaged; buffers (the condition's statistics) follow the model, or they would lag far behind.
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        settings.rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    run = Fitting(model, average, optimizer, settings, folder / "training.pt", seed)
    run.resume(device)
    run.run_through(source, device, tell, measured)
    averaged = average.module
    assert isinstance(averaged, TokenDiffusion)
    save_layout(folder, averaged.encoder, averaged.unet)


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

    def run_through(self, source: ImageSource, device: torch.device, tell: Tell, measured: Measured) -> None:
        """Take every step that is left."""
        total, since, losses = self.steps, time.perf_counter(), []
        for pixels in self._batches(source):
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
        with appearing(self.checkpoint) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def resume(self, device: torch.device) -> None:
        """Read the state, if there is one."""
        sweep(self.checkpoint.parent)
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    def _batches(self, source: ImageSource) -> Iterator[Tensor]:
        settings = self.settings
        if len(source) < settings.batch:
            raise UserError(
                f"There are {len(source)} images, fewer than one batch of {settings.batch}: "
                "a generator needs some thousands of images, and fit.batch at most their number."
            )
        order = positions(
            len(source), settings.batch, first=self.step, last=self.steps, seed=self.seed, rank=0, world=1
        )
        loader: DataLoader[Tensor] = DataLoader(
            Windows(source, settings, self.seed),
            batch_sampler=order,  # positions are (epoch, index) and need no length
            num_workers=settings.workers,
        )
        yield from loader


def _device(settings: FitSettings) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device


def _half(settings: FitSettings, device: torch.device) -> bool:
    return settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
