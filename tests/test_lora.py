"""LoRAs in three namings, against W + scale · α/r · B·A by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from genview.errors import UserError
from genview.generators import Img2ImgSettings, KandinskySettings, Text
from genview.generators.lora import USUAL, read_lora
from genview.generators.weights import read_text, read_unet
from tiny import tiny_plain_unet, tiny_text, tiny_tokenizer, tiny_vae

ALPHA, RANK, SCALE = 2.0, 3, 0.7
UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.1.proj_in",
)
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
ALL = (*UNET, CONVOLUTION)
TEXT = "encoder.layers.1.self_attn.q_proj"
Updates = dict[str, tuple[Tensor, Tensor]]
"""Module → A and B."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("lora")
    made: Any = StableDiffusionPipeline(
        tokenizer=tiny_tokenizer(root / "words"),
        text_encoder=tiny_text(),
        unet=tiny_plain_unet(),
        vae=tiny_vae(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(root / "sd")
    return root / "sd"


def weights(folder: Path, part: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(next((folder / part).glob("*.safetensors")))


def updates(folder: Path, part: str, modules: tuple[str, ...]) -> Updates:
    torch.manual_seed(1)
    found = {}
    for module in modules:
        shape = weights(folder, part)[f"{module}.weight"].shape
        ones = (1,) * (len(shape) - 2)
        found[module] = (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *ones))
    return found


def changed(folder: Path, part: str, made: Updates, factor: float, more: float = 0.0) -> dict[str, Tensor]:
    """Weights after `factor`, `factor + more`, … times the updates."""
    state = weights(folder, part)
    for i, (module, (a, b)) in enumerate(made.items()):
        name = f"{module}.weight"
        state[name] = state[name] + (factor + i * more) * (b.flatten(1) @ a.flatten(1)).view(state[name].shape)
    return state


def peft(prefix: str, made: Updates) -> dict[str, Tensor]:
    halves = {f"{prefix}.{module}.lora_A.weight": a for module, (a, _) in made.items()}
    return halves | {f"{prefix}.{module}.lora_B.weight": b for module, (_, b) in made.items()}


def older(prefix: str, made: Updates) -> dict[str, Tensor]:
    halves = {f"{prefix}.{module}.lora.down.weight": a for module, (a, _) in made.items()}
    return halves | {f"{prefix}.{module}.lora.up.weight": b for module, (_, b) in made.items()}


def attention(prefix: str, made: Updates) -> dict[str, Tensor]:
    """As diffusers once saved what it had trained, attention only."""
    found = {}
    for module, (a, b) in made.items():
        block, _, layer = module.removesuffix(".0").rpartition(".")
        found[f"{prefix}.{block}.processor.{layer}_lora.down.weight"] = a
        found[f"{prefix}.{block}.processor.{layer}_lora.up.weight"] = b
    return found


def kohya(prefix: str, made: Updates) -> dict[str, Tensor]:
    """Every layer has an α of its own."""
    found: dict[str, Tensor] = {}
    for i, (module, (a, b)) in enumerate(made.items()):
        name, alpha = f"lora_{prefix}_{module.replace('.', '_')}", torch.tensor(ALPHA + i)
        found |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": alpha}
    return found


def saved(state: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> str:
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, file, metadata=metadata)
    return str(file)


def assert_unet_is(found: Any, expected: dict[str, Tensor]) -> None:
    assert found.state_dict().keys() == expected.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not any(value.requires_grad for value in found.parameters())


@pytest.mark.parametrize(("naming", "modules"), [(peft, ALL), (older, ALL), (attention, UNET[:2])])
def test_weights_after_diffusers_namings(folder: Path, tmp_path: Path, naming: Any, modules: tuple[str, ...]) -> None:
    made = updates(folder, "unet", modules)
    lora = read_lora(saved(naming("unet", made), tmp_path / "a.safetensors"), SCALE)
    assert_unet_is(read_unet(folder, torch.float32, lora), changed(folder, "unet", made, SCALE))


def test_weights_after_kohyas_naming(folder: Path, tmp_path: Path) -> None:
    made, words = updates(folder, "unet", ALL), updates(folder, "text_encoder", (TEXT,))
    state = kohya("unet", made) | kohya("te_text_model", words)
    lora = read_lora(saved(state, tmp_path / "a.safetensors"), SCALE)
    expected = changed(folder, "unet", made, SCALE * ALPHA / RANK, SCALE / RANK)
    assert_unet_is(read_unet(folder, torch.float32, lora), expected)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ({"lora_alpha": 2.0}, [2 / 3] * 4),
        ({"lora_alpha": 2.0, "use_rslora": True}, [2 / 3**0.5] * 4),
        ({"lora_alpha": 2.0, "alpha_pattern": {"attn2.to_k": 6.0, f"^{UNET[3]}": 9.0}}, [2, 2 / 3, 2 / 3, 3]),
    ],
)
def test_pefts_header_says_alpha(folder: Path, tmp_path: Path, config: dict[str, Any], factors: list[float]) -> None:
    made = updates(folder, "unet", UNET)
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}
    lora = read_lora(saved(peft("unet", made), tmp_path / "a.safetensors", header), 1.0)
    by_hand = {module: (a, factor * b) for (module, (a, b)), factor in zip(made.items(), factors, strict=True)}
    assert_unet_is(read_unet(folder, torch.float32, lora), changed(folder, "unet", by_hand, 1.0))


@pytest.mark.parametrize("naming", [peft, kohya])
def test_the_text_encoder_gets_its_part(folder: Path, tmp_path: Path, naming: Any) -> None:
    made = updates(folder, "text_encoder", (TEXT,))
    prefix, factor = (
        ("te_text_model", SCALE * ALPHA / RANK) if naming is kohya else ("text_encoder.text_model", SCALE)
    )
    lora = read_lora(saved(naming(prefix, made), tmp_path / "a.safetensors"), SCALE)
    plain, tower = (read_text(folder, Text("a", "b"), torch.float32, given) for given in (None, lora))
    plain._net.load_state_dict(changed(folder, "text_encoder", made, factor))
    torch.testing.assert_close(tower.encode(["a b"]), plain.encode(["a b"]))
    assert not torch.equal(tower.encode(["a"]), plain.encode(["a"]))  # encoded before the weights were replaced


def test_it_is_added_before_the_weights_are_rounded(folder: Path, tmp_path: Path) -> None:
    made = updates(folder, "unet", UNET)
    lora = read_lora(saved(peft("unet", made), tmp_path / "a.safetensors"), 0.01)
    expected = changed(folder, "unet", made, 0.01)
    for name, value in read_unet(folder, torch.bfloat16, lora).state_dict().items():
        torch.testing.assert_close(value, expected[name].bfloat16(), atol=0, rtol=2**-8)


def test_a_folder_and_a_name_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = peft("unet", updates(folder, "unet", UNET))
    cache = tmp_path / "snapshots/0123456789abcdef"
    (cache / "deep").mkdir(parents=True)
    files = [saved(state, cache / name) for name in (USUAL, "deep/a.safetensors")]
    asked = []

    def hf_hub_download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if repository == "no/thing":
            raise OSError("no network")
        return str(cache / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    found = [read_lora(name, 1.0) for name in (str(cache), files[1], "some/one", "some/one/deep/a.safetensors")]
    assert [lora.name for lora in found if lora] == [
        cache.name,
        "a",
        "some/one@0123456789ab",
        "some/one/deep/a.safetensors@0123456789ab",
    ]
    with pytest.raises(UserError, match="neither file nor folder: 'no/thing'"):
        read_lora("no/thing", 1.0)
    assert asked == [("some/one", USUAL), ("some/one", "deep/a.safetensors"), ("no/thing", USUAL)]
    assert read_lora("", 1.0) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: peft("transformer", made), "none of its weights"),
        (lambda made: peft("unet", made) | {"conv.weight": torch.zeros(1)}, "'conv.weight' is none"),
        (lambda made: kohya("unet", made) | {"lora_unet_a.hada_w1_a": torch.zeros(1)}, "none of its weights.*LoHa"),
        (lambda made: kohya("unet", made) | {"lora_unet_a.dora_scale": torch.zeros(1)}, "none of its weights.*DoRA"),
        (lambda made: kohya("unet", made) | {"lora_unet_a.lora_up.weight": torch.zeros(1)}, "lacks one of its two"),
        (lambda made: peft("unet", {k: (a[1:], b) for k, (a, b) in made.items()}), "do not fit each other"),
        (lambda _made: {}, "it is empty"),
        (lambda made: peft("unet", {f"{k}x": v for k, v in made.items()}), "has no layer 'down_.*to_out_0x'"),
        (lambda made: peft("unet", {k: (a[:, 1:], b) for k, (a, b) in made.items()}), "of 16 by 15 weights"),
        (lambda made: peft("unet", {k: (a, b[1:]) for k, (a, b) in made.items()}), "of 15 by 16 weights"),
    ],
)
def test_what_is_no_lora_or_fits_nothing(folder: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    file = saved(spoil(updates(folder, "unet", UNET)), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        read_unet(folder, torch.float32, read_lora(file, 1.0))


def test_pickled_and_broken_files_are_not_read(folder: Path, tmp_path: Path) -> None:
    torch.save(peft("unet", updates(folder, "unet", UNET)), tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for file in (tmp_path / "a.bin", tmp_path / "b.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot be read as a LoRA"):
            read_lora(str(file), 1.0)


def test_generators_carry_it_in_their_views_and_their_name(folder: Path, tmp_path: Path) -> None:
    file = saved(peft("unet", updates(folder, "unet", UNET)), tmp_path / "style.safetensors")
    settings = Img2ImgSettings(
        weights=str(folder), steps=4, size=32, save_size=32, precision="float32", tokens_from="natural"
    )
    arguments: Any = (torch.randn(1, 4 * 16 * 16), torch.tensor([800]), torch.ones(1), [0])
    plain, none, added = (
        replace(settings, lora=lora, lora_scale=scale).load("cpu")
        for lora, scale in (("", 1.0), (file, 0.0), (file, 1.0))
    )
    assert (plain.name, added.name) == ("img2img/sd", "img2img/sd+style")
    views = plain.sample(*arguments)
    assert (none.sample(*arguments).int() - views.int()).abs().max() <= 1
    assert (added.sample(*arguments).int() - views.int()).abs().max() > 5


def test_kandinsky_takes_none() -> None:
    with pytest.raises(UserError, match=r"no use for generator\.lora"):
        KandinskySettings(lora="a.safetensors").load("cpu")
