"""Training a generator: the loop by hand on a small lesson, and all of it on the small generator."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from conftest import Painted
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import EmbeddedSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.lesson import LessonSettings
from genview.generators.token_diffusion import NetworkSettings
from genview.store import RunFolder
from genview.training.average import MovingAverage
from genview.training.fit import Task, fit, share_of_rate
from genview.training.samples import LEVELS, draw, scores
from learners import Guess

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, condition_from=(0, 2), channels=4)
FIT = FitSettings(
    network=NetworkSettings(widths=(16, 32), layers=1),
    samples=48,
    batch=8,
    workers=0,
    save_every=2,
    sample_every=4,
    measure_every=1,
    device="cpu",
)
QUICK = LessonSettings(
    size=8,
    zoom=1.0,
    samples=48,
    batch=8,
    rate=0.05,
    warmup=2,
    workers=0,
    save_every=2,
    measure_every=2,
    device="cpu",
)


def guess(folder: Path, settings: LessonSettings = QUICK, *, count: int = 20, stop_at: int = 0) -> tuple[Task, Guess]:
    """Train; at step `stop_at`, Ctrl-C strikes when progress is told."""
    torch.manual_seed(0)
    lesson = Guess()
    task = Task(lesson, Painted(count, size=8), torch.empty(0), settings, RunFolder(folder), seed=3)

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    fit(task, tell)
    return task, lesson


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in RunFolder(folder).measures() if m.name == "fit/loss"]


def test_the_loop_by_hand(tmp_path: Path) -> None:
    """Six steps of AdamW on the windows that were seen, with noise, rates, clipping and torch's own average."""
    settings = replace(QUICK, clip=0.05, measure_every=1)
    task, lesson = guess(tmp_path, settings)
    windows = lesson.seen
    torch.manual_seed(0)
    other = Guess()
    slow: Any = AveragedModel(
        other, avg_fn=lambda averaged, now, n: averaged + (now - averaged) * (1 - min(0.9995, (1 + n) / (10 + n)))
    )
    optimizer = torch.optim.AdamW(other.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    from genview.seeds import seed_of

    found = []
    for step, share in enumerate([0.5, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]):
        torch.manual_seed(seed_of(3, "", step, "noise"))
        optimizer.param_groups[0]["lr"] = 0.05 * share
        loss = other(windows[step]).mean()
        loss.backward()
        assert nn.utils.clip_grad_norm_(other.parameters(), 0.05) > 0.05, "something is clipped"
        optimizer.step()
        optimizer.zero_grad()
        slow.update_parameters(other)
        found.append((step + 1, loss.item()))
    assert dict(losses(tmp_path)) == pytest.approx(dict(found))
    for mine, theirs in zip(lesson.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert json.loads((tmp_path / "weight.json").read_text()) == pytest.approx(slow.module.last.bias.tolist())
    assert float(lesson.prepared) == 24, "twenty images fill three batches of eight"
    assert task.finished


def test_the_rate_rises_stays_and_falls() -> None:
    settings = replace(QUICK, samples=80)
    shares = [share_of_rate(step, settings) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert share_of_rate(0, replace(settings, warmup=0)) == 1


def test_ctrl_c_keeps_every_step_and_the_rest_is_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Saved in the middle of a measure too; and with another number of workers."""
    settings = replace(QUICK, save_every=100)
    guess(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        guess(tmp_path / "cut", settings, stop_at=4)
    assert torch.load(tmp_path / "cut" / "training.pt", weights_only=True)["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, lesson = guess(tmp_path / "cut", replace(settings, workers=1))
    assert len(lesson.seen) == 2
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (tmp_path / "cut" / "weight.json").read_bytes() == (tmp_path / "whole" / "weight.json").read_bytes()


def test_what_was_measured_after_the_last_save_is_not_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, save_every=4, measure_every=1)
    guess(tmp_path / "whole", settings)

    def killed(self: MovingAverage) -> None:
        if self.count == 5:
            raise SystemExit  # as a kill: nothing is saved
        update(self)

    update = MovingAverage.update
    monkeypatch.setattr(MovingAverage, "update", killed)
    with pytest.raises(SystemExit):
        guess(tmp_path / "cut", settings)
    assert [step for step, _ in losses(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(MovingAverage, "update", update)
    guess(tmp_path / "cut", settings)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_training_says_so_and_does_nothing(tmp_path: Path) -> None:
    guess(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = []
    task = Task(Guess(), Painted(20, size=8), torch.empty(0), QUICK, RunFolder(tmp_path), seed=3)
    fit(task, lambda *words: said.append(words))
    assert said == [("fit-generator", 6, 6, "finished already")]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_state_that_cannot_be_continued_is_named(tmp_path: Path) -> None:
    guess(tmp_path)
    (tmp_path / "weight.json").unlink()
    state = (tmp_path / "training.pt").read_bytes()
    other = torch.load(tmp_path / "training.pt", weights_only=True)
    other["lesson"]["more"] = torch.zeros(1)
    torch.save(other, tmp_path / "other.pt")
    for damaged in (b"", b"no state", state[: len(state) // 2], (tmp_path / "other.pt").read_bytes()):
        (tmp_path / "training.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"training\.pt cannot be continued"):
            guess(tmp_path)


def test_half_precision_rounds_no_image_and_compiling_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, measure_every=1)
    guess(tmp_path / "plain", settings)
    _, half = guess(tmp_path / "half", replace(settings, precision="bfloat16"))
    assert half.seen[0].dtype == torch.float32
    assert torch.equal((half.seen[0] * 255).round() / 255, half.seen[0]), "no bit is lost"
    plain, rounded = losses(tmp_path / "plain"), losses(tmp_path / "half")
    assert rounded != plain
    assert [v for _, v in rounded] == pytest.approx([v for _, v in plain], rel=0.1, abs=1e-3)
    graphs: list[Any] = []

    def noted(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **more: compiled(self, backend=noted, **more))
    guess(tmp_path / "compiled", replace(settings, compile=True))
    assert graphs
    assert dict(losses(tmp_path / "compiled")) == pytest.approx(dict(plain))


def test_what_is_not_finite_stops_the_training_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Guess.forward
    monkeypatch.setattr(Guess, "forward", lambda self, x: forward(self, x) / (len(self.seen) < 4))
    with pytest.raises(UserError, match=r"not finite at step 4.*training\.pt"):
        guess(tmp_path)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2


def test_batches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 images to train on, fewer than one batch of 8.*fit\.batch=2"):
        guess(tmp_path, count=5)
    with pytest.raises(UserError, match=r"fit\.device is cuda|found no"):
        guess(tmp_path, replace(QUICK, device="cuda")) if not torch.cuda.is_available() else pytest.fail("found no")


def test_unreadable_images_are_set_aside_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Painted(20, size=8, broken=(2, 3))
    fit(Task(Guess(), source, torch.empty(0), QUICK, RunFolder(tmp_path), seed=3), lambda *_: None)
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == [source.key(3), source.key(2)]
    assert {row["reason"] for row in rows} == {"made so"}


def small(folder: Path, settings: FitSettings = FIT, stop_at: int = 0) -> None:
    torch.manual_seed(0)
    source, held = Painted(16), images_of(Painted(18), 16, 18)
    lesson = TokenDiffusion(TokenEncoder(ENCODER), settings)

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt  # strikes at once, like a kill

    fit(Task(lesson, source, held, settings, RunFolder(folder), seed=0), tell)


def images_of(source: Painted, first: int, last: int) -> Tensor:
    arrays = [np.asarray(source.image(i)) for i in range(first, last)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "out"
    small(folder)
    return folder


def measures(folder: Path) -> list[tuple[str, int, float]]:
    clock = ("per_second", "seconds_left", "waiting")
    return [(m.name, m.step, m.value) for m in RunFolder(folder).measures() if not m.name.endswith(clock)]


def test_fit_resumes_exactly(fitted: Path, tmp_path: Path) -> None:
    """Weights, losses, samples and their scores."""
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "out", stop_at=5)
    small(tmp_path / "out")
    assert measures(tmp_path / "out") == measures(fitted)
    files = {path.relative_to(fitted) for path in fitted.rglob("*.safetensors")}
    assert len(files) == 2
    for name in files | {Path("samples/step-00000004.npz"), Path("samples/step-00000006.npz")}:
        assert (fitted / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not list(fitted.glob(".*")), "nothing half made is left"


def test_fit_lets_the_trunk_alone(fitted: Path) -> None:
    torch.manual_seed(0)
    before = TokenEncoder(ENCODER).trunk.state_dict()
    after = safetensors.torch.load_file(fitted / "encoder" / "model.safetensors")
    assert all(
        torch.equal(after[f"trunk.{name}"], value.half() if value.is_floating_point() else value)
        for name, value in before.items()
    )


def test_the_result_loads_with_the_classes_of_diffusers(fitted: Path) -> None:
    unet = UNet2DModel.from_pretrained(fitted / "unet", low_cpu_mem_usage=False)
    assert unet.config.block_out_channels == [16, 32]
    scheduler = DDIMScheduler.from_pretrained(fitted / "scheduler")
    assert scheduler.config.prediction_type == "sample"
    x = torch.zeros(1, unet.config.in_channels, 8, 8)
    with torch.no_grad():
        assert unet(x, 3, class_labels=torch.tensor([0])).sample.shape == (1, 48, 8, 8)


def test_samples_are_drawn_from_the_average_and_scored(fitted: Path) -> None:
    """What the run noted is what the finished generator gives, as its weights are the averaged ones."""
    held = images_of(Painted(18), 16, 18)
    generator = EmbeddedSettings(weights=str(fitted), size=32).load("cpu")
    views = draw(generator, held, seed=0)
    assert views.shape == (2, 3, 2, 3, 32, 32)
    with np.load(fitted / "samples" / "step-00000006.npz") as kept:
        assert np.array_equal(kept["views"], views[0].permute(0, 1, 3, 4, 2).numpy())
        assert np.array_equal(kept["images"], (held * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
        assert tuple(kept["levels"]) == LEVELS
    found = {name: value for name, step, value in measures(fitted) if step == 6 and name.startswith("online/")}
    assert found == {f"online/{name}": value for name, value in scores(held, views, generator.encoder)}
    assert found["online/apart@level=400"] > found["online/apart@level=0"] > 0


class Shades:
    """A frozen encoder whose tokens are the mean red and the mean green."""

    name, size = "shades", 4

    def encode(self, images: Tensor) -> Any:
        from genview.encoders import Encoded

        means = images.mean(dim=(2, 3))[:, :2]
        return Encoded(means[:, None], means, (1, 1))

    def to(self, device: torch.device | str) -> Shades:  # noqa: ARG002
        return self


def test_scores_by_hand() -> None:
    images = torch.zeros(1, 3, 4, 4)
    images[:, 0] = 1.0
    views = torch.zeros(2, 3, 1, 3, 4, 4, dtype=torch.uint8)
    views[:, 0, :, 0] = 255  # level 0: the source twice
    views[0, 1, :, 0], views[1, 1, :, 1] = 255, 255  # level 200: the source, and green for red
    views[:, 2, :, 1] = 255
    found = dict(scores(images, views, Shades()))
    third = (2 / 3) ** 0.5  # two of three channels are wrong
    assert found == pytest.approx(
        {
            "rmse@level=0": 0,
            "apart@level=0": 0,
            "similarity@level=0": 1,
            "rmse@level=200": (1 / 3) ** 0.5,
            "apart@level=200": third,
            "similarity@level=200": 0.5,
            "rmse@level=400": third,
            "apart@level=400": 0,
            "similarity@level=400": 0,
        },
        abs=1e-6,
    )


def test_a_disk_that_is_full_at_the_end_leaves_state_and_earlier_result(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genview.generators.token_diffusion import save_layout as save

    calls: Iterator[int] = iter(range(100))

    def full(folder: Path, *more: Any) -> None:
        if next(calls) == 2:  # two previews come first
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(folder, *more)

    monkeypatch.setattr("genview.generators.fit.save_layout", full)
    with pytest.raises(UserError, match=r"is full\. What was finished before is kept"):
        small(tmp_path)
    assert not (tmp_path / "model_index.json").exists()
    small(tmp_path)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (fitted / name).read_bytes()


@pytest.mark.parametrize("size", [32, 48])
def test_the_small_generator_is_deterministic_per_row(fitted: Path, size: int) -> None:
    generator = EmbeddedSettings(weights=str(fitted), size=size, steps=3).load("cpu")
    images = torch.rand(3, 3, 40, 40)
    condition = generator.encoder.encode(images).embedding
    level, guidance, seeds = torch.tensor([0, 200, 400]), torch.ones(3), [1, 2, 3]
    together = generator.sample(condition, level, guidance, seeds)
    assert together.shape == (3, 3, size, size)
    assert together.dtype == torch.uint8
    for i in range(3):
        alone = generator.sample(condition[i : i + 1], level[i : i + 1], guidance[i : i + 1], seeds[i : i + 1])
        assert (alone[0].int() - together[i].int()).abs().max() <= 1
    guided = generator.sample(condition, level, torch.tensor([1.0, 1.0, 3.0]), seeds)
    assert (guided[:2].int() - together[:2].int()).abs().max() <= 1, "guidance belongs to its own row"
    assert not torch.equal(guided[2], together[2])


def test_wrong_weights_are_clear_errors(fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no generator"):
        EmbeddedSettings(weights=str(tmp_path)).load("cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableUnCLIPImg2ImgPipeline"}')
    with pytest.raises(UserError, match="kind: unclip"):
        EmbeddedSettings(weights=str(tmp_path)).load("cpu")
    with pytest.raises(UserError, match="multiple of 4 pixels"):
        EmbeddedSettings(weights=str(fitted), size=33).load("cpu")
