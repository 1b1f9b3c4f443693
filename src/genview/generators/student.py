"""A denoiser that was taught to take few, known steps; `distil` teaches it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genview.encoders.token_encoder import TokenEncoder
from genview.generators.token_diffusion import Denoiser, NoisedCode, schedules


class TimeGrid(nn.Module):
    """Times from pure noise to the clean image in steps of trailing spacing, and the solver's steps between them.

    Args:
        alphas_cumprod: ᾱ of every time.
        steps: how many; positions on the grid go from 0, pure noise, to `steps`, clean.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    half_log_snr: Tensor

    def __init__(self, alphas_cumprod: Tensor, steps: int) -> None:
        super().__init__()
        last = len(alphas_cumprod)
        times = (last - torch.arange(steps + 1, dtype=torch.float64) * last / steps).round().long() - 1
        kept = torch.cat([alphas_cumprod.double(), torch.ones(1)])[times]  # the clean image has time -1
        self.register_buffer("times", times, persistent=False)
        self.register_buffer("alpha", kept.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - kept).sqrt().float(), persistent=False)
        self.register_buffer("half_log_snr", (kept / (1 - kept)).log().float() / 2, persistent=False)

    def at(self, t: Tensor) -> Tensor:
        """Return the positions B of times B."""
        return (self.times >= t[:, None]).sum(dim=1) - 1

    def of(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ and √(1 − ᾱ) at positions B, B×1×1×1 each."""
        return self.alpha[position].view(-1, 1, 1, 1), self.sigma[position].view(-1, 1, 1, 1)

    def step(self, x: Tensor, clean: Tensor, at: Tensor, to: Tensor) -> Tensor:
        """Go from positions `at` B to `to` B along a straight line to `clean`: DDIM (Song et al., 2021)."""
        (a, s), (a_to, s_to) = self.of(at), self.of(to)
        return a_to * clean + s_to / s * (x - a * clean)

    def clean_for(self, x: Tensor, reached: Tensor, at: Tensor, to: Tensor) -> Tensor:
        """Return the clean image with which `step` goes from x to what was reached."""
        (a, s), (a_to, s_to) = self.of(at), self.of(to)
        return (reached - s_to / s * x) / (a_to - a * s_to / s)

    def extrapolated(self, clean: Tensor, before: Tensor, at: Tensor, to: Tensor) -> Tensor:
        """Return the clean image half a step on, from predictions at `at` and at the position before it.

        With it `step` is the multistep DPM-Solver++ of order 2 (Lu et al., 2022). Steps are measured in log SNR. One
        to the clean image is infinitely long, and so is one from pure noise: both stay of order 1.
        """
        ahead = self.half_log_snr[to] - self.half_log_snr[at]
        behind = self.half_log_snr[at] - self.half_log_snr[at - 1]
        share = torch.where(ahead.isfinite(), ahead / (2 * behind), 0.0)
        return clean + share.view(-1, 1, 1, 1) * (clean - before)


class Student(Denoiser):
    """x̂₀ = jump + spread · UNet, where one step with x̂₀ goes all the way to the student's next time.

    Its teacher's guess is the mean of all clean pixels that there may be, which lacks what the noise decides. The
    `jump` is right where these pixels are normal, of mean μ and deviation d once the code is known: the solution then
    keeps (x − √ᾱ μ) / √(ᾱ d² + 1 − ᾱ) as it is from one time to the next, so the student starts from the exact
    solution of what can be guessed (compare Zheng et al., 2025, on preconditioning). All else is as in `Denoiser`.
    """

    def __init__(self, encoder: TokenEncoder, unet: Any, steps: int) -> None:
        super().__init__(encoder, unet)
        self.grid = TimeGrid(schedules()[0].alphas_cumprod, steps)

    def forward(self, x: Tensor, t: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """Clean images for noisy ones at the student's times; see `Denoiser`."""
        guess, spread = self.guess(x, t, code)
        return self.jump(x, t, code) + spread * self.correction(x, guess, t, code, level)

    def jump(self, x: Tensor, t: Tensor, code: NoisedCode) -> Tensor:
        """Return the clean image that takes x at times B where it would go if pixels were normal."""
        mean, deviation = self.guess(x, torch.full_like(t, len(self.kept_pixels) - 1), code)
        at = self.grid.at(t)
        (a, s), (a_to, s_to) = self.grid.of(at), self.grid.of(at + 1)
        scale, scale_to = (a * deviation).hypot(s), (a_to * deviation).hypot(s_to)
        reached = a_to * mean + scale_to / scale * (x.float() - a * mean)
        return self.grid.clean_for(x.float(), reached, at, at + 1)
