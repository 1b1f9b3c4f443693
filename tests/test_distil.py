"""The few-step student: its loss, its training, and what its folder remembers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Painted
from genview.encoders import Code
from genview.errors import UserError
from genview.generators import EmbeddedSettings
from genview.generators.distil import Distillation, DistilSettings
from genview.generators.embedded import code_with_noise
from genview.generators.fit import TokenDiffusion
from genview.generators.sampler import finished, noise_for, unclip_schedule
from genview.generators.start import start_from
from genview.generators.student import Student
from genview.generators.token_diffusion import NoisedCode, Sampling, noised, read_sampling, save_layout, schedules
from genview.store import RunFolder
from genview.training.fit import fit
from genview.training.task import Task
from students import FIT, KEPT, drawn, painted, rms, steps_of, taught

SEEN = torch.tensor([0, 100, 200, 300, 400, 500])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return painted()


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
