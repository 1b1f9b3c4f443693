"""Our Stable unCLIP against diffusers' own pipeline, on small randomly initialised weights in its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_unclip_img2img
from PIL import Image
from torch import Tensor

from genview.encoders import FrozenEncoder
from genview.generators import Generator, Text, Unclip
from genview.generators.latent import SOLVERS
from genview.generators.sampler import finished, noise_for
from unclip_folders import FLOAT32, Saved, saved_unclip

LEVELS = torch.tensor([0, 100, 200, 400])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """On a busy machine threads that wait for one another make networks this small a hundred times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["h", "l"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_unclip(tmp_path_factory.mktemp(request.param), request.param)


def theirs(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, level: int, guidance: float, rows: slice, **given: Any
) -> Tensor:
    """One call of diffusers' pipeline with our noise: images in [0, 1]."""
    monkeypatch.setattr(
        pipeline_stable_unclip_img2img, "randn_tensor", lambda *_args, **_kwargs: noises(saved)[0][rows]
    )
    embeds = saved.condition[rows]
    images: Tensor = saved.pipeline(
        image_embeds=embeds,
        prompt=[given.get("prompt", "")] * len(embeds),
        negative_prompt=[given.get("negative", "")] * len(embeds),
        noise_level=level,
        guidance_scale=guidance,
        num_inference_steps=4,
        latents=noises(saved)[1][rows],
        output_type="pt",
    ).images
    return images


def noises(saved: Saved) -> tuple[Tensor, Tensor]:
    seeds = range(4)
    return noise_for(seeds, saved.condition.shape[1:], "embedding"), noise_for(seeds, (4, 16, 16), "latent")


def ours(
    generator: Unclip, saved: Saved, level: Tensor, guidance: Tensor, rows: slice = slice(4), **texts: Any
) -> Tensor:
    """The same from ours: images in [0, 1]."""
    noise, latents = noises(saved)
    images = generator.sample_from(saved.condition[rows], level, guidance, noise[rows], latents[rows], **texts)
    return (images / 2 + 0.5).clamp(0, 1)


def assert_same_images(found: Tensor, expected: Tensor) -> None:
    inside = ((expected > 0) & (expected < 1)).float().mean()
    assert inside > 0.5, "too many pixels are clamped for a comparison that means anything"
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# Inside the pipeline, some schedulers turn a tensor into an array in a way that NumPy 2 frowns upon.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("guidance", [1.0, 10.0])
@pytest.mark.parametrize("solver", ["pndm", "ddim", "dpm", "unipc"])
def test_same_noise_in_same_image_out(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, solver: Any, guidance: float
) -> None:
    kind, options = getattr(diffusers, SOLVERS[solver]), {"clip_sample": False} if solver == "ddim" else {}
    monkeypatch.setattr(saved.pipeline, "scheduler", kind.from_config(saved.pipeline.scheduler.config, **options))
    generator = saved.load(replace(FLOAT32, solver=solver))
    found = ours(generator, saved, torch.full((4,), 200), torch.full((4,), guidance))
    assert_same_images(found, theirs(saved, monkeypatch, 200, guidance, slice(4)))


def test_mixed_levels_and_guidances_in_one_batch_equal_single_calls(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = torch.tensor([10.0, 1.0, 4.0, 2.5])
    found = ours(saved.load(), saved, LEVELS, guidance)
    for i in range(4):
        row = slice(i, i + 1)
        expected = theirs(saved, monkeypatch, int(LEVELS[i]), float(guidance[i]), row)
        assert_same_images(found[row], expected)
        assert_same_images(ours(saved.load(), saved, LEVELS[row], guidance[row], row), expected)


def test_level_guidance_and_both_noises_matter(saved: Saved) -> None:
    generator = saved.load()
    embedding_noise, latents = noises(saved)
    plain: list[Any] = [saved.condition, LEVELS, torch.full((4,), 4.0), embedding_noise, latents]
    base = generator.sample_from(*plain)
    for i, changed in enumerate([-saved.condition, LEVELS + 500, torch.full((4,), 5.0), -embedding_noise, -latents]):
        other = generator.sample_from(*[*plain[:i], changed, *plain[i + 1 :]])
        assert (other - base).abs().amax(dim=(1, 2, 3))[1:].min() > 1e-3


def test_the_prompt_is_empty_unless_given(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    level, guidance, row = torch.tensor([100]), torch.tensor([10.0]), slice(1)
    empty = ours(saved.load(), saved, level, guidance, row)
    worded = ours(saved.load(replace(FLOAT32, prompt="bad cafe")), saved, level, guidance, row)
    assert_same_images(empty, theirs(saved, monkeypatch, 100, 10.0, row))
    assert_same_images(worded, theirs(saved, monkeypatch, 100, 10.0, row, prompt="bad cafe"))
    assert (empty - worded).abs().max() > 1e-3


def test_every_row_may_have_a_text_of_its_own(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Text("a"), Text("b", "c"), Text("", "d"), Text("e f")]
    guidance = torch.tensor([10.0, 3.0, 4.0, 2.5])
    found = ours(saved.load(), saved, LEVELS, guidance, texts=texts)
    for i, text in enumerate(texts):
        row, level = slice(i, i + 1), int(LEVELS[i])
        assert_same_images(found[row], theirs(saved, monkeypatch, level, float(guidance[i]), row, **text._asdict()))
    plain = ours(saved.load(), saved, LEVELS, guidance)
    assert (found - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_a_lora_changes_the_network_and_the_name(saved: Saved, tmp_path: Path) -> None:
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    a, b = torch.randn(2, 16), torch.randn(16, 2)
    state = {f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}
    safetensors.torch.save_file(state, tmp_path / "style.safetensors")
    plain = saved.load()
    changed = saved.load(replace(FLOAT32, lora=str(tmp_path / "style.safetensors"), lora_scale=0.5))
    assert (changed.name, changed.encoder.name) == (f"{plain.name}+style", plain.encoder.name)
    before, after = (made._diffusion.unet.net.get_submodule(layer).weight for made in (plain, changed))
    torch.testing.assert_close(after, before + 0.5 * b @ a)


def test_sample_draws_its_noise_from_the_seeds_and_does_not_mind_the_order(saved: Saved) -> None:
    generator: Generator = saved.load()
    guidance = torch.tensor([10.0, 1.0, 4.0, 2.5])
    views = generator.sample(saved.condition, LEVELS, guidance, range(4))
    assert torch.equal(views, finished(ours(saved.load(), saved, LEVELS, guidance) * 2 - 1, 32))
    order = [2, 0, 3]
    again = generator.sample(saved.condition[order], LEVELS[order], guidance[order], order)
    assert (again.int() - views[order].int()).abs().max() <= 1
    assert (generator.sample(saved.condition, LEVELS, guidance, [4, 5, 6, 7]).int() - views.int()).abs().max() > 5


def test_views_are_made_at_one_size_and_kept_at_another(saved: Saved) -> None:
    large = saved.load(replace(FLOAT32, size=48, save_size=48))
    small = saved.load(replace(FLOAT32, size=48, save_size=24))
    arguments = (saved.condition[:1], LEVELS[:1], torch.ones(1), [3])
    whole, kept = large.sample(*arguments), small.sample(*arguments)
    assert whole.shape == (1, 3, 48, 48)
    assert (small.size, kept.dtype) == (24, torch.uint8)
    reference = Image.fromarray(whole[0].permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.BICUBIC)
    difference = np.asarray(reference).astype(int) - kept[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 4  # PIL rounds to 8 bits before and between its two passes


def test_embeddings_are_noised_in_float32_in_any_precision(saved: Saved) -> None:
    generator = saved.load(replace(FLOAT32, precision="bfloat16"))
    shown: list[Tensor] = []
    generator._diffusion.unet.net.register_forward_pre_hook(
        lambda _net, _args, given: shown.append(given["class_labels"]), with_kwargs=True
    )
    generator.sample(saved.condition, LEVELS, torch.ones(4), range(4))
    noise, normalizer = noises(saved)[0], saved.pipeline.image_normalizer
    kept = saved.pipeline.image_noising_scheduler.alphas_cumprod[LEVELS].unsqueeze(1)
    z = kept.sqrt() * normalizer.scale(saved.condition) + (1 - kept).sqrt() * noise
    expected = normalizer.unscale(z).detach().bfloat16()
    assert shown[0].dtype == torch.bfloat16
    assert torch.equal(shown[0][:, : expected.shape[1]], expected)


def test_the_unconditional_half_is_left_out_where_nothing_is_guided(saved: Saved) -> None:
    generator, rows = saved.load(), list[int]()
    generator._diffusion.unet.net.register_forward_pre_hook(lambda _net, args: rows.append(len(args[0])))
    for guidance in (1.0, 2.0):
        generator.sample(saved.condition[:1], LEVELS[:1], torch.tensor([guidance]), [0])
    assert rows == [1] * 5 + [2] * 5  # PNDM calls the network once more than its 4 steps


def test_tower_encodes_as_transformers_does(saved: Saved) -> None:
    tower: FrozenEncoder = saved.load().encoder
    chance = np.random.default_rng(0)
    coarse = Image.fromarray(chance.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    image = coarse.resize((90, 60), Image.Resampling.BICUBIC)
    pixels = saved.pipeline.feature_extractor(images=image, return_tensors="pt").pixel_values
    net = saved.pipeline.image_encoder
    with torch.no_grad():
        expected = net(pixel_values=pixels)
    found = tower.encode(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(found.embedding, expected.image_embeds, atol=2e-2, rtol=0)  # PIL rounds to 8 bits

    upright = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    with torch.no_grad():
        exact = net(pixel_values=(upright - mean) / std)
    found = tower.encode(upright)
    torch.testing.assert_close(found.embedding, exact.image_embeds, atol=1e-5, rtol=0)
    norm, raw = net.vision_model.post_layernorm, exact.last_hidden_state[:, 1:]
    centred = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(found.tokens, (centred * norm.weight + norm.bias).detach(), atol=1e-4, rtol=0)
    assert found.grid == (4, 4)
    assert tower.size == 32
    assert not found.embedding.requires_grad


def test_rows_that_overflow_come_back_black_and_can_be_made_in_float32(saved: Saved) -> None:
    generator = saved.load(replace(FLOAT32, precision="bfloat16"))
    plain = (saved.condition, LEVELS, torch.ones(4), range(4))
    broken = generator._diffusion.decoder.decoder.conv_out.register_forward_hook(
        lambda _net, _args, found: found.masked_fill(torch.tensor([0, 1, 0, 0]).bool().view(4, 1, 1, 1), torch.inf)
    )
    black = generator.sample(*plain).flatten(1).amax(dim=1) == 0
    broken.remove()
    assert black.tolist() == [False, True, False, False]
    exact = generator.exact()
    assert exact._diffusion.unet.net.dtype == torch.float32
    assert (exact.sample(*plain).flatten(1).amax(dim=1) > 0).all()
    assert saved.load().exact()._diffusion.unet.net.dtype == torch.float32
