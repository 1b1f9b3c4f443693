"""All of the training of the small generator: resumed exactly, sampled and scored on the way, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from conftest import Painted
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import EmbeddedSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.token_diffusion import NetworkSettings
from genview.store import RunFolder
from genview.training.fit import fit
from genview.training.samples import LEVELS, draw, scores
from genview.training.task import Task

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
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
        assert unet(x, 3, class_labels=torch.tensor([0])).sample.shape == (1, 12, 8, 8)


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
    with pytest.raises(UserError, match="multiple of 8 pixels"):
        EmbeddedSettings(weights=str(fitted), size=33).load("cpu")
