"""The few-step student: its target against exact solutions, its training, and what its folder remembers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import Painted
from genview.encoders import BackboneSettings, Code, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import EmbeddedSettings
from genview.generators.code import fit_code
from genview.generators.distil import Distillation, DistilSettings
from genview.generators.embedded import code_with_noise
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.sampler import Course, Step, denoise, finished, noise_for, timesteps, unclip_schedule
from genview.generators.start import start_from
from genview.generators.student import Student, TimeGrid
from genview.generators.token_diffusion import (
    NOTHING_KNOWN,
    Denoiser,
    NetworkSettings,
    NoisedCode,
    Sampling,
    noised,
    read_sampling,
    save_layout,
    schedules,
)
from genview.store import RunFolder
from genview.training.fit import fit
from genview.training.task import Task

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
FIT = FitSettings(network=NetworkSettings(widths=(32,), layers=1))
LEVEL = torch.tensor([0, 100, 200, 400, 700, NOTHING_KNOWN])
SEEN = torch.tensor([0, 100, 200, 300, 400, 500])
PIXELS = (3, 8, 8)
KEPT: Tensor = DDIMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True).alphas_cumprod  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def images() -> Tensor:
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


class Silent(nn.Module):
    """A network that adds nothing, at once."""

    config = SimpleNamespace(out_channels=12)

    def forward(self, x: Tensor, _t: Tensor, class_labels: Tensor) -> UNet2DOutput:
        assert len(class_labels) == len(x)
        return UNet2DOutput(sample=torch.zeros_like(x[:, :12]))


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


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


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


def test_the_loss_is_the_error_after_clamping_times_a_bounded_weight(images: Tensor) -> None:
    """At the points that the student itself comes to from noise."""
    model = taught(images, 0.3)
    model.settings = replace(FIT, snr=5.0)
    student = Distillation(model, steps_of(2, 2))
    with torch.no_grad():
        student.denoiser.unet.conv_out.bias.add_(0.1)
        torch.manual_seed(5)
        losses = student(images)
        torch.manual_seed(5)
        code, level = model.noised_code(images)
        first = torch.randint(0, 2, (32,)) == 0
        noise = torch.randn(32, 3, 16, 16)
        start, half = torch.full((32,), 999), torch.full((32,), 499)
        on_the_way = student.denoiser(noise, start, code, level).clamp(-1, 1)
        kept = KEPT[499]
        x = kept.sqrt() * on_the_way + (1 - kept).sqrt() * noise  # at time 999 there is nothing but noise
        x = torch.where(first.view(-1, 1, 1, 1), noise, x)
        t, at = torch.where(first, start, half), torch.where(first, 0, 2)
        missed = student.denoiser(x, t, code, level).clamp(-1, 1) - student.target(x, at, code, level)
        precision = 1 / model.denoiser.guess(x, t, code)[1].square()
    assert bool((precision > 5).any() & (precision < 5).any())
    assert torch.allclose(losses, (missed.square() * precision.clamp(max=5)).mean(dim=(1, 2, 3)), rtol=1e-3)


def test_what_is_clamped_still_has_a_gradient(images: Tensor) -> None:
    """A pixel that is far too bright where the teacher's is grey: clamping it would leave nothing to learn from."""
    student = Distillation(taught(images), steps_of(1, 1))
    with torch.no_grad():
        student.denoiser.unet.conv_out.bias.fill_(50)
    student(images).mean().backward()
    assert float(student.denoiser.unet.conv_out.bias.grad.min()) > 0


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


def trained(student: Distillation, images: Tensor, steps: int, rate: float = 1e-3) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], rate)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 5) * (1 - step / steps)
        loss = student(images[torch.randint(0, len(images), (8,))]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.denoiser.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def codes_of(model: TokenDiffusion, images: Tensor) -> NoisedCode:
    """Codes of six images, noised to levels that training has."""
    _, code = model.encoder(images[:6])
    noise = Code(*map(torch.randn_like, code))
    return noised(code, SEEN, SEEN.view(-1, 1, 1, 1), noise, unclip_schedule())


@pytest.fixture(scope="module")
def skewed(images: Tensor) -> TokenDiffusion:
    """A teacher that shifts its guess by some share of the spread: no solution for normal pixels is right for it."""
    made = taught(images)
    torch.nn.init.normal_(made.denoiser.unet.conv_out.bias, std=0.5)
    return made


def test_training_takes_two_steps_nearer_to_the_teachers_thirty_two(skewed: TokenDiffusion, images: Tensor) -> None:
    torch.manual_seed(6)
    code, noise = codes_of(skewed, images), torch.randn(6, 3, 16, 16)
    student = Distillation(skewed, steps_of(2, 8))
    wanted = drawn(skewed.denoiser, 32, 2, noise, code, SEEN)
    before = [rms(drawn(net, 2, 1, noise, code, SEEN) - wanted) for net in (skewed.denoiser, student.denoiser)]
    trained(student, images, 12)
    after = rms(drawn(student.denoiser, 2, 1, noise, code, SEEN) - wanted)
    assert after < 0.6 * before[1] < 0.2 * before[0]


def test_a_training_is_the_same_for_the_same_seed_and_changes_the_student_alone(
    skewed: TokenDiffusion, images: Tensor
) -> None:
    students = [Distillation(skewed, steps_of(4, 2)) for _ in range(2)]
    before = {name: value.clone() for name, value in students[0].state_dict().items()}
    assert trained(students[0], images, 3) == trained(students[1], images, 3)
    after = students[0].state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("denoiser.unet.") for name in changed)
    assert all(torch.equal(after[name], value) for name, value in students[1].state_dict().items())


@pytest.fixture(scope="module")
def folder(skewed: TokenDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("student")
    student = Distillation(skewed, steps_of(3, 2, guidance=1.5))
    student.save(made)
    assert {value.dtype for value in student.denoiser.unet.parameters()} == {torch.float32}, "as it was"
    return made


def test_its_folder_says_how_it_is_sampled(folder: Path, skewed: TokenDiffusion) -> None:
    assert read_sampling(folder) == Sampling(3, distilled=True, guidance=1.5)
    generator = EmbeddedSettings(weights=str(folder), size=16, precision="float32").load("cpu")
    asked = []
    generator._denoiser.unet.register_forward_pre_hook(lambda _net, given: asked.append(int(given[1][0])))
    level, seeds = torch.tensor([0, 300]), [1, 2]
    condition = torch.randn(2, 88, generator=torch.Generator().manual_seed(0)) / 2
    views = generator.sample(condition, level, torch.ones(2), seeds)
    assert asked == [999, 666, 332]
    code = code_with_noise(generator.encoder, condition, level, seeds, generator.settings, schedules()[1])
    student = Student(skewed.encoder, skewed.denoiser.unet, 3)
    solved = drawn(student, 3, 1, noise_for(seeds, (3, 16, 16), "latent"), code, level)
    expected = finished(solved, 16)
    assert (views.int() - expected.int()).abs().max() <= 1, "weights are written in half precision"


def test_a_student_takes_no_other_number_of_steps(folder: Path) -> None:
    assert EmbeddedSettings(weights=str(folder), size=16, steps=3).load("cpu")
    with pytest.raises(UserError, match=r"distilled to 3 steps .* leave generator\.steps \(1\)"):
        EmbeddedSettings(weights=str(folder), size=16, steps=1).load("cpu")


def test_nothing_starts_from_a_student(folder: Path, skewed: TokenDiffusion) -> None:
    with pytest.raises(UserError, match="start from what it was distilled from"):
        start_from(skewed, str(folder))


def test_other_weights_take_two_steps_unless_asked(skewed: TokenDiffusion, tmp_path: Path) -> None:
    save_layout(tmp_path, skewed.encoder, copy.deepcopy(skewed.denoiser.unet))
    assert read_sampling(tmp_path) == Sampling()
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["sampling"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for steps, calls in ((None, 2), (5, 5)):
        generator = EmbeddedSettings(weights=str(tmp_path), size=16, steps=steps).load("cpu")
        asked: list[int] = []
        generator._denoiser.unet.register_forward_pre_hook(lambda *_, asked=asked: asked.append(1))
        generator.sample(torch.zeros(1, 88), torch.zeros(1, dtype=torch.int64), torch.ones(1), [0])
        assert len(asked) == calls
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "sampling": {"stepz": 3}}))
    with pytest.raises(UserError, match="does not say how its network is sampled"):
        EmbeddedSettings(weights=str(tmp_path), size=16).load("cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (steps_of(0, 8), "1 to 8 steps"),
        (steps_of(9, 8), "1 to 8 steps"),
        (steps_of(4, 0), "write 1 to 250"),
        (steps_of(4, 251), "write 1 to 250"),
    ],
)
def test_settings_that_cannot_be(skewed: TokenDiffusion, settings: DistilSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(skewed, settings)


def test_the_loop_trains_it_and_leaves_a_student(skewed: TokenDiffusion, tmp_path: Path) -> None:
    settings = DistilSettings(
        student_steps=2,
        teacher_steps=2,
        size=16,
        samples=32,
        batch=8,
        workers=0,
        sample_every=4,
        measure_every=1,
        device="cpu",
    )
    said: list[str] = []
    task = Task(
        Distillation(skewed, settings),
        Painted(16, size=16),
        torch.rand(2, 3, 16, 16),
        settings,
        RunFolder(tmp_path),
        0,
    )
    fit(task, lambda _verb, done, total, note: said.append(f"{done}/{total} {note}"))
    assert said[-1].startswith("4/4 loss")
    assert (tmp_path / "samples").exists()
    views = (
        EmbeddedSettings(weights=str(tmp_path), size=16)
        .load("cpu")
        .sample(torch.zeros(1, 88), torch.zeros(1, dtype=torch.int64), torch.ones(1), [0])
    )
    assert views.shape == (1, 3, 16, 16)
    assert read_sampling(tmp_path) == Sampling(2, distilled=True)
