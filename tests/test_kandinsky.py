"""Kandinsky's decoder against diffusers' own pipeline, on small randomly initialised weights in its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import KandinskyV22Pipeline
from torch import Tensor
from transformers import CLIPImageProcessor

from genview.errors import UserError
from genview.generators import Generator, Kandinsky, KandinskySettings, Text
from genview.generators.sampler import finished, noise_for
from tiny import tiny_vision

WIDTH = 24
SETTINGS = KandinskySettings(steps=4, save_size=32, precision="float32", solver="ddim")
LEVELS = torch.tensor([0, 100, 200, 400])
GUIDANCE = torch.tensor([1.0, 3.0, 5.0, 2.0])


@dataclass(frozen=True)
class Saved:
    pipeline: Any
    decoder: Path
    prior: Path
    condition: Tensor

    def load(self, settings: KandinskySettings = SETTINGS) -> Kandinsky:
        return replace(settings, weights=str(self.decoder), prior=str(self.prior)).load("cpu")


def tiny_unet() -> Any:
    net: Any = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="image",
        addition_embed_type_num_heads=4,
        cross_attention_dim=16,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    return net.eval()


def tiny_movq() -> Any:
    net: Any = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=12,
        norm_num_groups=8,
        norm_type="spatial",
        vq_embed_dim=4,
    )
    return net.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("kandinsky")
    scheduler: Any = diffusers.DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range"
    )
    parts: dict[str, Any] = {"unet": tiny_unet(), "scheduler": scheduler, "movq": tiny_movq()}
    decoder: Any = KandinskyV22Pipeline(**parts)
    decoder.save_pretrained(root / "decoder")
    prior = root / "prior"
    tiny_vision(WIDTH).save_pretrained(prior / "image_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(prior / "image_processor")
    (prior / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22PriorPipeline"}))
    decoder.set_progress_bar_config(disable=True)
    return Saved(decoder, root / "decoder", prior, torch.randn(4, WIDTH))


def ours(generator: Kandinsky, saved: Saved, rows: slice = slice(4)) -> Tensor:
    embedding_noise, latents = noise_for(range(4), (WIDTH,), "embedding"), noise_for(range(4), (4, 8, 8), "latent")
    return generator.sample_from(
        saved.condition[rows], LEVELS[rows], GUIDANCE[rows], embedding_noise[rows], latents[rows]
    )


def noised(saved: Saved) -> Tensor:
    """The embeddings by hand: the more noise the less is left of them, in units of their own size."""
    scheduler: Any = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    rows = []
    for row, level in enumerate(LEVELS.tolist()):
        c, kept = saved.condition[row], scheduler.alphas_cumprod[level]
        size = (c**2).mean().sqrt()
        rows.append(kept.sqrt() * c + (1 - kept).sqrt() * size * noise_for([row], (WIDTH,), "embedding")[0])
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", ["ddim", "dpm"])  # their pipeline does not run with UniPC
def test_rows_of_one_batch_are_diffusers_own(saved: Saved, monkeypatch: pytest.MonkeyPatch, solver: Any) -> None:
    kind: Any = {"ddim": diffusers.DDIMScheduler, "dpm": diffusers.DPMSolverMultistepScheduler}[solver]
    scheduler = kind.from_pretrained(saved.decoder / "scheduler", clip_sample=False)
    scheduler.register_to_config(variance_type=None)
    monkeypatch.setattr(saved.pipeline, "scheduler", scheduler)
    generator = saved.load(replace(SETTINGS, solver=solver))
    found, given = ours(generator, saved), noised(saved)
    with torch.no_grad():
        zero = tiny_zero(saved)
    for row in range(4):
        one = slice(row, row + 1)
        expected = saved.pipeline(
            image_embeds=given[one],
            negative_image_embeds=zero,
            height=16,
            width=16,
            num_inference_steps=4,
            guidance_scale=float(GUIDANCE[row]),
            latents=noise_for([row], (4, 8, 8), "latent"),
            output_type="pt",
        ).images
        assert expected.std() > 0.02
        torch.testing.assert_close(found[one], expected, atol=1e-4, rtol=1e-4)


def tiny_zero(saved: Saved) -> Tensor:
    """What diffusers' prior gives for nothing: the embedding of pixels that are 0 after normalisation."""
    from transformers import CLIPVisionModelWithProjection

    net = CLIPVisionModelWithProjection.from_pretrained(saved.prior / "image_encoder")
    zero: Tensor = net(pixel_values=torch.zeros(1, 3, 32, 32)).image_embeds
    return zero


def test_sample_draws_its_noise_from_the_seeds(saved: Saved) -> None:
    generator: Generator = saved.load()
    views = generator.sample(saved.condition, LEVELS, GUIDANCE, range(4))
    assert torch.equal(views, finished(ours(saved.load(), saved), 32))
    again = generator.sample(saved.condition[[2, 0]], LEVELS[[2, 0]], GUIDANCE[[2, 0]], [2, 0])
    assert (again.int() - views[[2, 0]].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a dog"}, r"no use for generator\.prompt"),
        ({"size": 500}, "multiple of 64"),
        ({"reuse": 2}, r"generator\.reuse"),
        ({"weights": "", "prior": ""}, "could not be fetched"),
    ],
)
def test_settings_that_cannot_be(
    saved: Saved, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_given: object, **_rest: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    here = replace(SETTINGS, weights=str(saved.decoder), prior=str(saved.prior))
    with pytest.raises(UserError, match=message):
        replace(here, **changes).load("cpu")


def test_text_is_refused(saved: Saved) -> None:
    with pytest.raises(UserError, match="reads no text"):
        saved.load().sample(saved.condition, LEVELS, GUIDANCE, range(4), [Text("a")] * 4)
