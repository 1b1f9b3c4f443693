"""Small teachers and students of few steps, the images that they are taught with, and views drawn from them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import Painted
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.generators.code import fit_code
from genview.generators.distil import DistilSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.sampler import Course, Step, denoise
from genview.generators.token_diffusion import NOTHING_KNOWN, Denoiser, NetworkSettings, NoisedCode

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
FIT = FitSettings(network=NetworkSettings(widths=(32,), layers=1))
LEVEL = torch.tensor([0, 100, 200, 400, 700, NOTHING_KNOWN])
KEPT: Tensor = DDIMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True).alphas_cumprod  # type: ignore[attr-defined]


def painted() -> Tensor:
    source = Painted(32, size=16)
    return torch.stack([pil_to_tensor(source.image(i)) for i in range(len(source))]) / 255


def taught(images: Tensor, spread: float = 0.0) -> TokenDiffusion:
    """A lesson whose network adds nothing to the guess, or something of deviation `spread`."""
    torch.manual_seed(0)
    made = TokenDiffusion(TokenEncoder(ENCODER), FIT).train()
    fit_code(made.encoder, images.split(16))
    torch.nn.init.normal_(made.denoiser.unet.conv_out.weight, std=spread)
    return made


def steps_of(student: int, teacher: int, guidance: float = 1.0) -> DistilSettings:
    return DistilSettings(student_steps=student, teacher_steps=teacher, guidance=guidance, size=16)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def solver_of(order: int) -> Any:
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        solver_order=order,
    )


@torch.no_grad()
def drawn(
    denoiser: Denoiser, steps: int, order: int, noise: Tensor, code: NoisedCode, level: Tensor = LEVEL
) -> Tensor:
    def predict(x: Tensor, step: Step) -> tuple[Tensor, None]:
        return denoiser(x, step.time.expand(len(x)), code, level).clamp(-1, 1), None

    return denoise(predict, Course(solver_of(order), steps), noise, torch.ones(len(noise)))
