"""IP-Adapter against diffusers' own pipeline, on small randomly initialised weights in the published layout."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from genview.errors import UserError
from genview.generators import Generator, IpAdapter, IpAdapterSettings, Text
from genview.generators.ip_adapter import IMAGE_ENCODER, add_adapter
from genview.generators.latent import SOLVERS
from genview.generators.sampler import finished, noise_for, noised_in_proportion
from genview.generators.unet import outer, whole
from genview.generators.weights import read_tower
from tiny import tiny_plain_unet, tiny_text, tiny_tokenizer, tiny_vae, tiny_vision

WIDTH, TOKENS, ACROSS = 24, 4, 16
SETTINGS = IpAdapterSettings(steps=4, save_size=32, precision="float32", scale=0.7)
FILE = SETTINGS.adapter_file
LEVELS = torch.tensor([0, 100, 200, 400])
GUIDANCE = torch.tensor([1.0, 3.0, 5.0, 2.0])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Saved:
    pipeline: Any
    folder: Path
    adapter: Path
    condition: Tensor

    def load(self, settings: IpAdapterSettings = SETTINGS) -> IpAdapter:
        return replace(settings, weights=str(self.folder), adapter=str(self.adapter)).load("cpu")


def adapter_weights(unet: Any, width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights under the names of the published file."""
    found = {
        "image_proj.proj.weight": torch.randn(TOKENS * ACROSS, width) / width**0.5,
        "image_proj.proj.bias": torch.randn(TOKENS * ACROSS),
        "image_proj.norm.weight": torch.rand(ACROSS) + 0.5,
        "image_proj.norm.bias": torch.randn(ACROSS),
    }
    for i, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("k", "v"):
                found[f"ip_adapter.{i}.to_{part}_ip.weight"] = torch.randn(hidden, ACROSS)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("ip_adapter")
    scheduler: Any = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    made: Any = StableDiffusionPipeline(
        tokenizer=tiny_tokenizer(root / "words"),
        text_encoder=tiny_text(),
        unet=tiny_plain_unet(),
        vae=tiny_vae(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(root / "sd")
    tiny_vision(WIDTH).save_pretrained(root / "adapter" / IMAGE_ENCODER)
    safetensors.torch.save_file(adapter_weights(made.unet), root / "adapter" / FILE)
    made.set_progress_bar_config(disable=True)
    made.load_ip_adapter(str(root / "adapter"), subfolder="models", weight_name=Path(FILE).name)
    made.set_ip_adapter_scale(SETTINGS.scale)
    return Saved(made, root / "sd", root / "adapter", torch.randn(4, WIDTH))


def noises() -> tuple[Tensor, Tensor]:
    return noise_for(range(4), (WIDTH,), "embedding"), noise_for(range(4), (4, 16, 16), "latent")


def ours(generator: IpAdapter, saved: Saved, rows: slice = slice(4), texts: list[Text] | None = None) -> Tensor:
    images = generator.sample_from(saved.condition[rows], GUIDANCE[rows], noises()[1][rows], texts=texts)
    return (images / 2 + 0.5).clamp(0, 1)


def theirs(saved: Saved, row: int, text: Text = Text()) -> Tensor:  # noqa: B008
    """One call of diffusers' pipeline for one row, with our noise."""
    embedding = saved.condition[row].view(1, 1, -1)
    guided = float(GUIDANCE[row]) > 1
    images: Tensor = saved.pipeline(
        prompt=[text.prompt],
        negative_prompt=[text.negative],
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embedding), embedding]) if guided else embedding],
        num_inference_steps=SETTINGS.steps,
        guidance_scale=float(GUIDANCE[row]),
        latents=noises()[1][row : row + 1],
        output_type="pt",
    ).images
    return images


def use(saved: Saved, monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    kind, options = getattr(diffusers, SOLVERS[solver]), {"clip_sample": False} if solver == "ddim" else {}
    monkeypatch.setattr(saved.pipeline, "scheduler", kind.from_pretrained(saved.folder / "scheduler", **options))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", ["pndm", "ddim", "dpm", "unipc"])
def test_rows_of_one_batch_are_diffusers_own(saved: Saved, monkeypatch: pytest.MonkeyPatch, solver: Any) -> None:
    use(saved, monkeypatch, solver)
    generator = saved.load(replace(SETTINGS, solver=solver))
    found = ours(generator, saved)
    for row in range(4):
        expected = theirs(saved, row)
        assert expected.std() > 0.02
        assert ((expected > 0) & (expected < 1)).float().mean() > 0.5
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours(generator, saved, slice(row, row + 1)), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_row_has_its_own_text_beside_its_image(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    use(saved, monkeypatch, "dpm")
    texts = [Text("a"), Text("b", "c"), Text("", "d"), Text("e f")]
    found = ours(saved.load(), saved, texts=texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(found[row : row + 1], theirs(saved, row, text), atol=1e-4, rtol=0)
    assert (found - ours(saved.load(), saved)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_image_and_scale_matter(saved: Saved) -> None:
    base = ours(saved.load(), saved)
    other = ours(saved.load(), replace(saved, condition=-saved.condition))
    text_alone = ours(saved.load(replace(SETTINGS, scale=0.0)), saved)
    for changed in (other, text_alone):
        assert (changed - base).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_sample_draws_both_noises_from_the_seeds(saved: Saved) -> None:
    generator: Generator = saved.load()
    views = generator.sample(saved.condition, LEVELS, GUIDANCE, range(4))
    noised = noised_in_proportion(saved.condition, LEVELS, noises()[0])
    assert torch.equal(views, finished(ours(saved.load(), replace(saved, condition=noised)) * 2 - 1, 32))
    again = generator.sample(saved.condition[[2, 0]], LEVELS[[2, 0]], GUIDANCE[[2, 0]], [2, 0])
    assert (again.int() - views[[2, 0]].int()).abs().max() <= 1


def test_noise_is_in_proportion_to_the_embedding(saved: Saved) -> None:
    scheduler: Any = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    noise = noises()[0]
    found = noised_in_proportion(saved.condition * 9, LEVELS, noise)
    for row, level in enumerate(LEVELS.tolist()):
        kept, c = scheduler.alphas_cumprod[level], saved.condition[row] * 9
        expected = kept.sqrt() * c + (1 - kept).sqrt() * (c**2).mean().sqrt() * noise[row]
        torch.testing.assert_close(found[row], expected)


def test_the_two_halves_of_the_network_see_the_image_too(saved: Saved) -> None:
    unet = saved.pipeline.unet  # its own projection makes the image's tokens
    text, x, t = torch.randn(4, 5, ACROSS), torch.randn(4, 4, 16, 16), torch.tensor(431)
    project = add_adapter(tiny_plain_unet(), saved.adapter / FILE, WIDTH, SETTINGS.scale)
    told = {"encoder_hidden_states": text, "image_tokens": project(saved.condition)}
    own = {"image_embeds": [saved.condition.unsqueeze(1)]}
    with torch.no_grad():
        expected = unet(x, t, text, added_cond_kwargs=own, return_dict=False)[0]
        found, deep = whole(unet, x, t, told)
        again = outer(unet, x, t, told, deep)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)


def test_the_adapter_computes_in_the_precision_of_the_network(saved: Saved) -> None:
    half = saved.load(replace(SETTINGS, precision="bfloat16"))
    assert {value.dtype for value in half._diffusion.unet.net.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in half.exact()._diffusion.unet.net.parameters()} == {torch.float32}
    assert (half.sample(saved.condition, LEVELS, GUIDANCE, range(4)).flatten(1).amax(dim=1) > 0).all()


def test_one_tower_has_one_name_wherever_it_was_published(saved: Saved, tmp_path: Path) -> None:
    """So that the same analysis of the images serves every generator that takes its embeddings."""
    name = saved.load().encoder.name
    net: Any = tiny_vision(WIDTH)
    original = saved.adapter / IMAGE_ENCODER
    net.load_state_dict(safetensors.torch.load_file(original / "model.safetensors"))
    net.half().save_pretrained(tmp_path / "half")
    assert read_tower(tmp_path / "half", None, torch.float32).name == name
    net.visual_projection.weight.data[0, 0] += 1
    net.save_pretrained(tmp_path / "other")
    assert read_tower(tmp_path / "other", None, torch.float32).name != name
    assert read_tower(original, None, torch.bfloat16).name == name


def test_a_lora_changes_what_the_adapter_stands_beside(saved: Saved, tmp_path: Path) -> None:
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    a, b = torch.randn(2, ACROSS), torch.randn(16, 2)
    state = {f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}
    safetensors.torch.save_file(state, tmp_path / "style.safetensors")
    plain, changed = saved.load(), saved.load(replace(SETTINGS, lora=str(tmp_path / "style.safetensors")))
    assert changed.name == f"{plain.name}+style"
    before, after = (made._diffusion.unet.net.get_submodule(layer) for made in (plain, changed))
    torch.testing.assert_close(after.weight, before.weight + b @ a)
    assert (ours(changed, saved) - ours(plain, saved)).abs().max() > 1e-3


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may spoil."""
    return shutil.copytree(saved.adapter, tmp_path / "copy")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _found: {"image_proj.latents": torch.zeros(1, 16, 8)}, "takes one embedding an image"),
        (lambda found: found | adapter_weights(tiny_plain_unet(), WIDTH + 1), "turns embeddings of 25 values"),
        (
            lambda found: {k: v for k, v in found.items() if not k.startswith("ip_adapter.3.")},
            "do not belong together",
        ),
        (
            lambda found: found | {f"ip_adapter.1.to_{p}_ip.weight": torch.zeros(7, ACROSS) for p in "kv"},
            "do not belong together",
        ),
    ],
)
def test_adapters_that_do_not_fit(saved: Saved, copy: Path, spoil: Any, message: str) -> None:
    found = safetensors.torch.load_file(copy / FILE)
    safetensors.torch.save_file(spoil(found), copy / FILE)
    with pytest.raises(UserError, match=message) as caught:
        replace(saved, adapter=copy).load()
    assert str(copy / FILE) in str(caught.value)


def test_a_pickled_adapter_is_never_read(saved: Saved, copy: Path) -> None:
    torch.save(safetensors.torch.load_file(copy / FILE), (copy / FILE).with_suffix(".bin"))
    (copy / FILE).unlink()
    with pytest.raises(UserError, match="Pickled weights"):
        replace(saved, adapter=copy).load()


def test_what_cannot_be_fetched_is_named(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **_rest: object) -> str:
        asked[repo_id] = allow_patterns
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"point generator\.adapter at that folder.*ip-adapter_sd15"):
        replace(SETTINGS, weights=str(saved.folder)).load("cpu")
    assert asked == {"h94/IP-Adapter": ["model_index.json", FILE, f"{IMAGE_ENCODER}/*"]}
