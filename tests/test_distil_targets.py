"""The target of the few-step student, and its steps, against exact solutions and diffusers' solvers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from genview.generators.distil import Distillation, DistilSettings
from genview.generators.fit import TokenDiffusion
from genview.generators.sampler import timesteps, unclip_schedule
from genview.generators.student import TimeGrid
from genview.generators.token_diffusion import NOTHING_KNOWN, NoisedCode
from students import KEPT, LEVEL, drawn, painted, rms, solver_of, steps_of, taught

PIXELS = (3, 8, 8)


class Silent(nn.Module):
    """A network that adds nothing, at once."""

    config = SimpleNamespace(out_channels=12)

    def forward(self, x: Tensor, _t: Tensor, class_labels: Tensor) -> UNet2DOutput:
        assert len(class_labels) == len(x)
        return UNet2DOutput(sample=torch.zeros_like(x[:, :12]))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return painted()


@pytest.fixture(scope="module")
def normal(images: Tensor) -> TokenDiffusion:
    """Pixels are normal, of mean `sketch` and known deviation, and so far from ±1 that nothing is clamped."""
    made = taught(images)
    made.denoiser.unet = Silent()
    with torch.no_grad():
        made.encoder.sketch.weight.mul_(0.15)
        made.encoder.sketch.bias.mul_(0.3)  # type: ignore[union-attr]
        made.encoder.residual.fill_(1e-3)
    return made


def known(seed: int) -> tuple[Tensor, NoisedCode]:
    """Noise and codes of six rows, as if the detail had the level of the gist."""
    chance = torch.Generator().manual_seed(seed)
    noise, detail = torch.randn(6, *PIXELS, generator=chance), torch.randn(6, 4, 2, 2, generator=chance) / 2
    gist = torch.randn(6, 6, 1, 1, generator=chance)
    kept = unclip_schedule()[LEVEL.clamp(max=999)].view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    nothing = (LEVEL == NOTHING_KNOWN).view(-1, 1, 1, 1)
    return noise, NoisedCode(*(torch.where(nothing, 0.0, part) for part in (detail, gist, kept)))


def solution(model: TokenDiffusion, code: NoisedCode, noise: Tensor, time: int) -> Tensor:
    """The exact solution for normal pixels: where a row that began as `noise` is at a time, in float64."""
    encoder, kept = model.encoder, code.kept.double()
    residual, sketched = encoder.residual.double(), encoder.sketch.weight.double().square().sum(dim=1).mean()
    prior, said = 1 / (residual + sketched), 1 / (residual + sketched * (1 - kept) / kept)  # 1/∞ where it is 0
    bias = encoder.sketch.bias.double().view(1, -1, 1, 1)  # type: ignore[union-attr]
    drawn = (encoder.sketch(code.detail).double() - bias) / kept.sqrt().clamp(min=1e-9)
    mean = bias + said / (said + prior) * drawn
    abar = KEPT[time].double() if time >= 0 else torch.ones(()).double()
    folded = F.pixel_unshuffle(noise.double(), 4)
    there: Tensor = abar.sqrt() * mean + (abar / (said + prior) + 1 - abar).sqrt() * folded
    return F.pixel_shuffle(there, 4)


@torch.no_grad()
def error(model: TokenDiffusion, settings: DistilSettings, step: int) -> float:
    """How far the target of a step, begun on the exact solution, is from one that leads along it."""
    student, (noise, code), each = Distillation(model, settings), known(1), settings.teacher_steps
    at = torch.full((6,), step * each)
    here, there = (int(student.grid.times[i * each]) for i in (step, step + 1))
    x, end = (solution(model, code, noise, time) for time in (here, there))
    a, b = KEPT[here].double(), KEPT[there].double() if there >= 0 else torch.ones(()).double()
    share = ((1 - b) / (1 - a)).sqrt()
    exact = (end - share * x) / (b.sqrt() - share * a.sqrt())
    return rms(student.target(x.float(), at, code, LEVEL) - exact)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_the_target_is_the_exact_solution_for_normal_pixels(normal: TokenDiffusion, step: int) -> None:
    """The last step ends with one of the teacher's from its last time to the clean image, which is of order 1."""
    assert error(normal, steps_of(4, 1), step) > 1e-3
    assert error(normal, steps_of(4, 32), step) < (3e-5 if step < 3 else 1e-2)


def test_the_teachers_error_falls_with_the_square_of_its_steps(normal: TokenDiffusion) -> None:
    few, many = (error(normal, steps_of(2, steps), 0) for steps in (8, 16))
    assert few / many == pytest.approx(4, abs=0.7)


def test_the_teachers_last_step_falls_short_by_less_the_shorter_it_is(normal: TokenDiffusion) -> None:
    assert error(normal, steps_of(8, 125), 7) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_an_untrained_student_solves_normal_pixels_exactly(normal: TokenDiffusion, steps: int) -> None:
    noise, code = known(2)
    student = Distillation(normal, steps_of(steps, 8)).denoiser
    assert torch.allclose(drawn(student, steps, 1, noise, code), solution(normal, code, noise, -1).float(), atol=2e-4)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_students_times_are_those_of_the_sampler(steps: int) -> None:
    solver = solver_of(1)
    grid = TimeGrid(KEPT, steps)
    assert torch.equal(grid.times[:-1], timesteps(solver, steps))
    assert torch.equal(TimeGrid(KEPT, 7 * steps).times[::7], grid.times)
    assert torch.equal(grid.at(grid.times[:-1]), torch.arange(steps))


@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_step_is_that_of_ddim(position: int) -> None:
    scheduler: Any = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(4)
    x, clean = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    at, grid = torch.full((2,), position), TimeGrid(KEPT, 4)
    reached = grid.step(x, clean, at, at + 1)
    assert torch.allclose(reached, scheduler.step(clean, scheduler.timesteps[position], x).prev_sample, atol=1e-5)
    assert torch.allclose(grid.clean_for(x, reached, at, at + 1), clean, atol=1e-4)


@torch.no_grad()
def test_the_teacher_goes_as_the_sampler_does(images: Tensor) -> None:
    """From noise to the clean image in one step of a student: six steps of DPM-Solver++, clamping included."""
    model, (noise, code) = taught(images, 0.3), known(3)
    student = Distillation(model, steps_of(1, 6))
    found = student.target(noise, torch.zeros(6, dtype=torch.int64), code, LEVEL)
    second, first = (drawn(model.denoiser, 6, order, noise, code) for order in (2, 1))
    assert rms(found - second) < 0.1 * rms(first - second)


@torch.no_grad()
def test_guidance_is_built_into_the_target(images: Tensor) -> None:
    model, (x, code) = taught(images, 0.3), known(4)
    at = torch.tensor([0, 1, 2, 3, 0, 1])
    found = Distillation(model, steps_of(4, 1, guidance=3.0)).target(x, at, code, LEVEL)
    t = torch.tensor([999, 749, 499, 249, 999, 749])
    conditional = model.denoiser(x, t, code, LEVEL).clamp(-1, 1)
    nothing = model.denoiser(
        x, t, NoisedCode(*map(torch.zeros_like, code)), torch.full_like(LEVEL, NOTHING_KNOWN)
    ).clamp(-1, 1)
    guided = (nothing + 3 * (conditional - nothing)).clamp(-1, 1)
    assert torch.allclose(found, guided, atol=1e-4)
    assert torch.allclose(found[-1], conditional[-1], atol=1e-4), "a row without a code has nothing to be guided by"
