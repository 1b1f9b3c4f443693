"""Image-to-image against diffusers' own pipeline, on small randomly initialised weights in its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genview.errors import UserError
from genview.generators import Generator, Img2Img, Img2ImgSettings, Text
from genview.generators.img2img import PARTS
from genview.generators.sampler import finished, noise_for
from tiny import tiny_plain_unet, tiny_text, tiny_tokenizer, tiny_vae

SETTINGS = Img2ImgSettings(steps=6, size=32, save_size=32, precision="float32", tokens_from="natural")
LEVELS = torch.tensor([0, 250, 600, 999])
GUIDANCE = torch.tensor([1.0, 3.0, 5.0, 2.0])


@dataclass(frozen=True)
class Saved:
    pipeline: Any
    folder: Path
    latents: Tensor

    def load(self, settings: Img2ImgSettings = SETTINGS) -> Img2Img:
        return replace(settings, weights=str(self.folder)).load("cpu")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param) / "sd"
    parts: dict[str, Any] = {
        "tokenizer": tiny_tokenizer(folder.parent / "words"),
        "text_encoder": tiny_text(),
        "unet": tiny_plain_unet(),
        "vae": tiny_vae(),
        "safety_checker": None,
        "feature_extractor": None,
        "scheduler": diffusers.PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=request.param,
            skip_prk_steps=True,
            steps_offset=1,
        ),
    }
    made: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.save_pretrained(folder)
    pipeline: Any = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return Saved(pipeline, folder, torch.randn(4, 4, 16, 16))


def ours(generator: Img2Img, saved: Saved, rows: slice = slice(4), texts: list[Text] | None = None) -> Tensor:
    noise = noise_for(range(4), (4, 16, 16), "latent")[rows]
    condition = saved.latents.flatten(1)[rows]
    images = generator.sample_from(condition, LEVELS[rows], GUIDANCE[rows], noise, texts=texts)
    return (images / 2 + 0.5).clamp(0, 1)


def theirs(saved: Saved, monkeypatch: pytest.MonkeyPatch, row: int, text: Text = Text()) -> Tensor:  # noqa: B008
    """One call of diffusers' pipeline for one row, with our noise."""
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as theirs_

    noise = noise_for([row], (4, 16, 16), "latent")
    monkeypatch.setattr(theirs_, "randn_tensor", lambda *_args, **_kwargs: noise)
    images: Tensor = saved.pipeline(
        image=saved.latents[row : row + 1],
        prompt=[text.prompt],
        negative_prompt=[text.negative],
        strength=float(SETTINGS.strength(LEVELS[row])),
        num_inference_steps=SETTINGS.steps,
        guidance_scale=float(GUIDANCE[row]),
        output_type="pt",
    ).images
    return images


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", ["ddim", "dpm", "unipc"])
def test_rows_of_every_strength_in_one_batch_are_diffusers_own(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, solver: Any
) -> None:
    kind = {
        "ddim": diffusers.DDIMScheduler,
        "dpm": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }[solver]
    more = {"clip_sample": False} if solver == "ddim" else {}
    scheduler = kind.from_pretrained(saved.folder / "scheduler", **more)
    monkeypatch.setattr(saved.pipeline, "scheduler", scheduler)
    found = ours(saved.load(replace(SETTINGS, solver=solver)), saved)
    assert SETTINGS.begin(LEVELS).tolist() == [5, 4, 2, 1]
    for row in range(4):
        expected = theirs(saved, monkeypatch, row)
        assert expected.std() > 0.02
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_row_has_its_own_text(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    solver: Any = diffusers.DPMSolverMultistepScheduler.from_pretrained(saved.folder / "scheduler")
    monkeypatch.setattr(saved.pipeline, "scheduler", solver)
    texts = [Text("a"), Text("b", "c"), Text("", "d"), Text("e f")]
    found = ours(saved.load(), saved, texts=texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(found[row : row + 1], theirs(saved, monkeypatch, row, text), atol=1e-4, rtol=0)


def test_sample_draws_its_noise_from_the_seeds(saved: Saved) -> None:
    generator: Generator = saved.load()
    condition = saved.latents.flatten(1)
    views = generator.sample(condition, LEVELS, GUIDANCE, range(4))
    assert torch.equal(views, finished(ours(saved.load(), saved) * 2 - 1, 32))
    again = generator.sample(condition[[2, 0]], LEVELS[[2, 0]], GUIDANCE[[2, 0]], [2, 0])
    assert (again.int() - views[[2, 0]].int()).abs().max() <= 1


def test_the_condition_is_what_the_vae_says_of_the_image(saved: Saved) -> None:
    generator = saved.load()
    assert generator.encoder.size == 32
    images = torch.rand(2, 3, 48, 32)
    found = generator.encoder.encode(images)
    vae = saved.pipeline.vae
    with torch.no_grad():
        latents = vae.encode(2 * images[:, :, 8:40] - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(found.embedding, latents.flatten(1))
    assert found.tokens.shape[1] == found.grid[0] * found.grid[1]


@given(st.lists(st.integers(0, 999), min_size=2, max_size=9), st.floats(0.2, 0.9), st.integers(5, 50))
def test_strength_rises_with_the_level_and_no_row_runs_no_step(levels: list[int], lowest: float, steps: int) -> None:
    settings = Img2ImgSettings(lowest=lowest, steps=steps)
    settings.check()
    level = torch.tensor(sorted(levels))
    strength, begin = settings.strength(level), settings.begin(level)
    assert (strength.diff() >= 0).all()
    assert (begin.diff() <= 0).all()
    assert strength.min() >= lowest
    assert strength.max() <= 1
    assert 0 <= int(begin.min()) <= int(begin.max()) < steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0.0}, "0 < lowest"),
        ({"highest": 1.2}, "highest <= 1"),
        ({"lowest": 0.1, "steps": 4}, "raise generator.steps to at least 10"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **changes).load("cpu")


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_level_out_of_range(saved: Saved, level: int) -> None:
    with pytest.raises(UserError, match="0 to 999"):
        saved.load().sample(saved.latents.flatten(1)[:1], torch.tensor([level]), torch.ones(1), [0])


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="names FluxPipeline") as caught:
        replace(SETTINGS, weights=str(tmp_path)).load("cpu")
    assert ", ".join(PARTS) in str(caught.value)
