"""Image-to-image with the network of the embedded generator: what its views are to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from genview.encoders import FrozenEncoder
from genview.encoders.frozen import Encoded
from genview.encoders.token_encoder import weights_folder
from genview.encoders.tower import fitted
from genview.generators import EmbeddedSettings, Img2ImgSettings, Text
from genview.generators.embedded import code_with_noise
from genview.generators.generator import LEVELS
from genview.generators.sampler import Course, Step, denoise, finished, noise_for
from genview.generators.token_diffusion import NOTHING_KNOWN, NoisedCode, load_layout, read_sampling


class WithPixels:
    """A `FrozenEncoder` whose embedding is the image, B×3×size×size flattened, and then that of another encoder."""

    def __init__(self, encoder: FrozenEncoder, size: int) -> None:
        self.name, self.size, self._encoder = f"pixels and {encoder.name}", size, encoder

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; see `FrozenEncoder`."""
        seen, pixels = self._encoder.encode(images), fitted(images, self.size).flatten(1)
        return Encoded(seen.tokens, torch.cat([pixels, seen.embedding], dim=1), seen.grid)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._encoder.to(device)
        return self


class FromSource:
    """A `Generator` that begins with its source, noised, instead of with noise (SDEdit: Meng et al., 2022).

    The strength is that of the package's own image-to-image at the same level, and as many steps are taken as the
    embedded generator takes. If `told`, the network also has the noised code, so that only the beginning differs
    from the embedded generator; otherwise the noisy pixels are all that it knows of the source.
    """

    def __init__(self, settings: EmbeddedSettings, *, told: bool) -> None:
        folder = weights_folder(settings.weights)
        self._code_of, self._denoiser, self._pixels, self._noising = load_layout(folder, settings.size)
        self._denoiser.eval().requires_grad_(False)
        self.name, self.size = f"from source/{folder.name}", settings.size
        self.encoder: FrozenEncoder = WithPixels(self._code_of, settings.size)
        self._steps = settings.steps or read_sampling(folder).steps
        self._settings, self._told, self._device = settings, told, torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._device = torch.device(device)
        self.encoder.to(device)
        self._denoiser.to(device)
        return self

    def exact(self) -> Self:
        """Return this generator: it computes in float32."""
        return self

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,  # noqa: ARG002
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Make one view a row, without guidance; see `Generator.sample`."""
        views = torch.empty(len(seeds), 3, self.size, self.size, dtype=torch.uint8)
        for value in level.unique().tolist():
            rows = (level == value).nonzero().flatten()
            views[rows] = self._sample(condition[rows].float().cpu(), value, [seeds[i] for i in rows.tolist()])
        return views

    def _sample(self, condition: Tensor, level: int, seeds: Sequence[int]) -> Tensor:
        pixels, code = condition.split([3 * self.size**2, condition.shape[1] - 3 * self.size**2], dim=1)
        clean = 2 * pixels.view(-1, 3, self.size, self.size) - 1
        first = begin(level)
        kept = self._denoiser.kept_pixels[first].cpu()
        x = kept.sqrt() * clean + (1 - kept).sqrt() * noise_for(seeds, clean.shape[1:], "latent")
        code, level_told = self._code(code, level, seeds)

        def predictions(x: Tensor, step: Step) -> tuple[Tensor, None]:
            times = step.time.to(self._device).expand(len(x))
            return self._denoiser(x, times, code, level_told).float().clamp(-1, 1), None

        course = Course(cut_off(self._pixels, first), self._steps)
        x = denoise(predictions, course, x.to(self._device), torch.ones(len(x)))
        return finished(x, self.size).cpu()

    def _code(self, code: Tensor, level: int, seeds: Sequence[int]) -> tuple[NoisedCode, Tensor]:
        """Return what the network is told of the source beside noisy pixels, and the level that says how well."""
        levels = torch.full((len(code),), level)
        made = code_with_noise(self._code_of, code, levels, seeds, self._settings, self._noising)
        if not self._told:
            made, levels = NoisedCode(*map(torch.zeros_like, made)), torch.full_like(levels, NOTHING_KNOWN)
        return NoisedCode(*(part.to(self._device) for part in made)), levels.to(self._device)


def begin(level: int) -> int:
    """Time in 0…999 up to which the source is noised."""
    return round(LEVELS * float(Img2ImgSettings().strength(torch.tensor(level)))) - 1


def cut_off(pixels: Any, first: int) -> Any:
    """Return a solver whose whole schedule is that of the pixels up to the time `first`."""
    from diffusers import DPMSolverMultistepScheduler

    betas = pixels.betas[: first + 1].tolist()
    return DPMSolverMultistepScheduler.from_config(
        pixels.config, trained_betas=betas, num_train_timesteps=len(betas), rescale_betas_zero_snr=False
    )
