"""The sampler against hand-computed values, slow loops and exact solutions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from genview.errors import UserError
from genview.generators.sampler import Course, Step, denoise, finished, noise_for, noised_embedding, sinusoid

COSINE: Tensor = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod  # type: ignore[attr-defined]
NOW: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENT = (3, 4, 4)


def test_noise_of_a_row_depends_on_its_seed_and_stream_alone() -> None:
    batch = noise_for([5, 2**62, 7], (40,), "latent")
    assert torch.equal(noise_for([7, 5], (40,), "latent"), batch[[2, 0]])
    assert batch.dtype == torch.float32
    assert not torch.equal(noise_for([5], (40,), "embedding")[0], batch[0])


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    noise_for([1], (3,), "latent")
    assert torch.equal(torch.rand(1), expected)


def test_noise_is_standard_normal_and_streams_and_seeds_are_independent() -> None:
    one, other = (noise_for(range(200), (200,), stream) for stream in ("latent", "embedding"))
    for noise in (one, other):
        assert noise.mean().abs() < 0.02
        assert abs(noise.std() - 1) < 0.02
    assert (one * other).mean().abs() < 0.02
    assert (one[1:] * one[:-1]).mean().abs() < 0.02


def test_noised_embedding_by_hand() -> None:
    """With abar = 0.25, mean 1 and std 2: c = 5 is z = 2; 0.5 · 2 + √0.75 · ε, times 2, plus 1."""
    found = noised_embedding(
        torch.tensor([[5.0]]),
        torch.tensor([1]),
        torch.tensor([[-1.0]]),
        torch.tensor([1.0, 0.25]),
        mean=torch.tensor([[1.0]]),
        std=torch.tensor([[2.0]]),
    )
    assert found.item() == pytest.approx((0.5 * 2 - math.sqrt(0.75)) * 2 + 1)


@pytest.mark.parametrize(
    ("level", "signal", "noise"),
    [(0, 1.0, 0.0064), (100, 0.9857, 0.1686), (200, 0.9475, 0.3197), (300, 0.8864, 0.4630), (400, 0.8037, 0.5950)],
)
def test_levels_mean_what_they_mean_in_stable_unclip(level: int, signal: float, noise: float) -> None:
    def noised(c: float, eps: float) -> float:
        row = (torch.tensor([[c]]).half(), torch.tensor([level]), torch.tensor([[eps]]).half())
        return noised_embedding(*row, COSINE, mean=torch.zeros(1), std=torch.ones(1)).item()

    assert noised(1, 0) == pytest.approx(signal, abs=6e-5)
    assert noised(0, 1) == pytest.approx(noise, abs=6e-5)


def test_every_row_gets_its_own_level() -> None:
    level = torch.tensor([400, 0, 200])
    c, eps = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), noise_for([1, 2, 3], (6,), "embedding")
    mean, std = torch.linspace(-1, 1, 6)[None], torch.linspace(0.5, 2, 6)[None]
    found = noised_embedding(c, level, eps, COSINE, mean=mean, std=std)
    for i, row in enumerate(level.tolist()):
        kept = COSINE[row].item()
        expected = (math.sqrt(kept) * (c[i] - mean[0]) / std[0] + math.sqrt(1 - kept) * eps[i]) * std[0] + mean[0]
        torch.testing.assert_close(found[i], expected)


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_level_outside_the_schedule_is_refused(level: int) -> None:
    zeros = torch.zeros(2, 1)
    with pytest.raises(UserError, match="0 to 999"):
        noised_embedding(zeros, torch.tensor([0, level]), zeros, COSINE, mean=torch.zeros(1), std=torch.ones(1))


def test_sinusoid_by_hand() -> None:
    found = sinusoid(torch.tensor([0, 100]), 4)
    slow = 100 * 10000**-0.5
    expected = [[1, 1, 0, 0], [math.cos(100), math.cos(slow), math.sin(100), math.sin(slow)]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_finished_views_are_rounded_clamped_and_black_where_something_overflowed() -> None:
    values = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.5, 1.0, 9.0, torch.inf, torch.nan])
    found = finished(values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), 4)
    assert found.dtype == torch.uint8
    assert found[:, 0, 0, 0].tolist() == [0, 0, 0, 128, 191, 255, 255, 0, 0]
    one = torch.ones(2, 3, 8, 8)
    one[0, 1, 2, 3] = torch.nan
    assert finished(one, 4).flatten(1).tolist() == [[0] * 48, [255] * 48]


SOLVERS: list[Any] = [
    DDIMScheduler(**NOW, clip_sample=False),
    PNDMScheduler(**NOW, skip_prk_steps=True),
    DPMSolverMultistepScheduler(**NOW),
    UniPCMultistepScheduler(**NOW),
]


@pytest.mark.parametrize("scheduler", SOLVERS, ids=lambda s: type(s).__name__)
def test_denoise_follows_the_exact_flow_of_gaussian_data(scheduler: Any) -> None:
    """For data N(c, s²) the best noise prediction is known, and so is where the flow takes each start."""
    centre, spread, times = 2.0, 0.5, []

    def predict(x: Tensor, step: Step) -> tuple[Tensor, None]:
        times.append(int(step.time))
        kept = scheduler.alphas_cumprod[int(step.time)]
        return (1 - kept).sqrt() * (x - kept.sqrt() * centre) / (kept * spread**2 + 1 - kept), None

    latents = noise_for(range(8), LATENT, "latent")
    found = denoise(predict, Course(scheduler, 100), latents, torch.ones(8))
    kept = scheduler.alphas_cumprod[times[0]].item()
    start = (latents - math.sqrt(kept) * centre) / math.sqrt(kept * spread**2 + 1 - kept)
    torch.testing.assert_close(found, centre + spread * start, atol=0.04, rtol=0)


@pytest.mark.parametrize("scheduler", SOLVERS, ids=lambda s: type(s).__name__)
def test_every_row_has_its_own_guidance_and_the_scheduler_stays_fresh(scheduler: Any) -> None:
    latents = noise_for([0, 1, 2], LATENT, "latent")

    def predict(x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        return torch.tanh(x) * (1 + step.time / 1000), 0.3 * x if step.guided else None

    guidance = torch.tensor([1.0, 3.5, 10.0])
    together = denoise(predict, Course(scheduler, 5), latents, guidance)
    for i in range(3):
        alone = denoise(predict, Course(scheduler, 5), latents[i : i + 1], guidance[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    unguided = denoise(lambda x, step: (predict(x, step)[0], None), Course(scheduler, 5), latents[:1], guidance[:1])
    torch.testing.assert_close(together[:1], unguided)
    assert scheduler.num_inference_steps is None
    same = denoise(predict, Course(scheduler, 5), latents[:1].repeat(3, 1, 1, 1), guidance)
    assert (same[0] - same[1]).abs().max() > 1e-2


def test_the_scheduler_scales_input_and_first_noise() -> None:
    """A scheduler that starts from 3·noise, shows x/2 to the network and subtracts a prediction each step."""

    class Halving:
        init_noise_sigma = 3.0
        timesteps: Tensor

        def set_timesteps(self, steps: int, device: torch.device) -> None:
            self.timesteps = torch.arange(steps, 0, -1, device=device)

        def scale_model_input(self, x: Tensor, t: Tensor) -> Tensor:
            return x / (2 * t)

        def step(self, prediction: Tensor, _t: Tensor, x: Tensor, return_dict: bool) -> tuple[Tensor]:
            assert not return_dict
            return (x - prediction,)

    found = denoise(lambda x, _step: (x, None), Course(Halving(), 2), torch.ones(1, 1, 1, 1), torch.ones(1))
    assert found.item() == pytest.approx(3 * (1 - 1 / 4) * (1 - 1 / 2))
