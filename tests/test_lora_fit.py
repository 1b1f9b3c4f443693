"""Training a LoRA on a tiny Stable unCLIP: its loss by hand, what it learns, and the file it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.pipelines.stable_diffusion import StableUnCLIPImg2ImgPipeline
from torch import Tensor

from conftest import Painted, Said
from genview.errors import UserError
from genview.generators import UnclipSettings
from genview.generators.lora import USUAL, read_lora
from genview.generators.lora_fit import LoraFitSettings, UnclipLora
from genview.generators.weights import read_unet
from genview.store import RunFolder
from genview.training.fit import fit
from genview.training.task import Task
from tiny import tiny_unclip

BASE = UnclipSettings(steps=2, save_size=32, precision="float32")
SMALL = LoraFitSettings(rank=2, alpha=3.0, checkpointing=False, size=32, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("lora-fit") / "unclip"
    tiny_unclip(made, 24, identity=False)
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def lesson(folder: Path, settings: LoraFitSettings = SMALL, **base: Any) -> UnclipLora:
    torch.manual_seed(1)
    return UnclipLora(replace(BASE, weights=str(folder), **base), settings, "cpu")


def moved(model: UnclipLora) -> UnclipLora:
    """Give the updates values, as training would."""
    torch.manual_seed(2)
    for name, value in model.adapters.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(value, std=0.3)
    return model


def trained(model: UnclipLora, images: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-2)
    losses = []
    for step in range(steps):
        torch.manual_seed(step % 4)
        loss = model(images).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_only_attention_is_trained_and_nothing_is_changed_at_first(folder: Path) -> None:
    model, plain = lesson(folder), read_unet(folder, torch.float32)
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trainable
    assert all(name.startswith("adapters.") for name in trainable)
    assert len(trainable) == 2 * 4 * 2 * 4, "A and B of 4 layers, in 2 attentions of each of 4 transformers"
    given = (torch.randn(1, 4, 16, 16), 500, torch.randn(1, 12, 16))
    known = torch.randn(1, 48)
    with torch.no_grad():
        found, expected = (net(*given, class_labels=known).sample for net in (model.unet, plain))
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon", "sample"])
def test_the_loss_is_that_of_the_published_training(folder: Path, images: Tensor, predicts: str) -> None:
    """Against diffusers' own pipeline, whose parts encode, noise and embed."""
    model = moved(lesson(folder, replace(SMALL, dropout=0.5)))
    model.scheduler.register_to_config(prediction_type=predicts)
    pipeline: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    batch = images.repeat(4, 1, 1, 1)
    torch.manual_seed(3)
    losses = model(batch)
    torch.manual_seed(3)
    found = pipeline.vae.encode(2 * batch - 1).latent_dist
    latents = (found.mean + found.std * torch.randn(found.mean.shape)) * 0.18215
    embedding = model._parts.encoder.encode(batch).embedding
    level = torch.randint(0, 501, (8,))
    level = torch.where(torch.rand(8) < 0.15, 0, level)
    noise = torch.randn_like(embedding)
    rows = [pipeline.noise_image_embeddings(embedding[i : i + 1], int(level[i]), noise[i : i + 1]) for i in range(8)]
    dropped = torch.rand(8) < 0.5
    known = torch.cat(rows) * ~dropped[:, None]
    words = pipeline.tokenizer([""] * 8, padding="max_length", max_length=12, return_tensors="pt").input_ids
    text = pipeline.text_encoder(words)[0]
    noise = torch.randn(latents.shape)
    t = torch.randint(0, 1000, (8,))
    kept = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    wanted = {"v_prediction": velocity, "epsilon": noise, "sample": latents}[predicts]
    expected = (model.unet(x, t, text, class_labels=known).sample - wanted).square().mean(dim=(1, 2, 3))
    assert 0 < int(dropped.sum()) < 8
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


def test_training_lowers_the_loss_and_leaves_all_else_alone(folder: Path, images: Tensor) -> None:
    model = lesson(folder)
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    losses = trained(model, images, 12)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters() if name in before)
    assert losses[:3] == trained(lesson(folder), images, 3), "the same seeds, the same training"


def test_checkpointing_changes_memory_not_gradients(folder: Path, images: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = moved(lesson(folder, replace(SMALL, checkpointing=checkpointing)))
        assert model.unet.is_gradient_checkpointing is checkpointing
        torch.manual_seed(4)
        model(images).sum().backward()
        gradients.append([value.grad for value in model.adapters.parameters()])
    assert any(float(grad.abs().max()) > 0 for grad in gradients[0] if grad is not None)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_in_bfloat16_the_updates_stay_in_float32_and_learn(folder: Path, images: Tensor) -> None:
    model = lesson(folder, precision="bfloat16")
    assert {value.dtype for value in model.unet.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in model.adapters.parameters()} == {torch.float32}
    losses = trained(model, images, 8)
    assert sum(losses[-4:]) < 0.98 * sum(losses[:4])


def test_the_file_read_back_changes_the_network_as_the_updates_did(folder: Path, tmp_path: Path) -> None:
    model = moved(lesson(folder))
    model.save(tmp_path)
    found = read_unet(folder, torch.float32, read_lora(str(tmp_path), 1.0))
    state = read_unet(folder, torch.float32).state_dict()
    for layer, adapter in model._by_layer():
        state[f"{layer}.weight"] += 3.0 / 2 * adapter.up.detach() @ adapter.down.detach()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=name)
    given = (torch.randn(1, 4, 16, 16), 500, torch.randn(1, 12, 16))
    known = torch.randn(1, 48)
    with torch.no_grad():
        live, read, plain = (
            net(*given, class_labels=known).sample for net in (model.unet, found, read_unet(folder, torch.float32))
        )
    torch.testing.assert_close(live, read, atol=1e-4, rtol=1e-4)
    assert (live - plain).abs().max() > 0.01


def test_views_drawn_while_it_learns_are_those_of_the_finished_file(folder: Path, tmp_path: Path) -> None:
    model = moved(lesson(folder))
    model.save(tmp_path)
    later = replace(BASE, weights=str(folder), lora=str(tmp_path)).load("cpu")
    arguments: Any = (torch.randn(2, 24), torch.tensor([0, 400]), torch.tensor([1.0, 4.0]), [0, 1])
    views = model.generator(tmp_path, torch.device("cpu")).sample(*arguments)
    assert (views.int() - later.sample(*arguments).int()).abs().max() <= 1


def test_diffusers_reads_the_file_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers reads LoRAs with peft only")
    model = moved(lesson(folder))
    model.save(tmp_path)
    pipeline: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path)
    given, known = (torch.randn(1, 4, 16, 16), 500, torch.randn(1, 12, 16)), torch.randn(1, 48)
    with torch.no_grad():
        theirs, ours = (net(*given, class_labels=known).sample for net in (pipeline.unet, model.unet))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_keeps_the_updates_alone(folder: Path) -> None:
    model, other = moved(lesson(folder)), lesson(folder)
    kept = model.kept()
    assert kept.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    assert not other.load_state_dict(kept, strict=False).unexpected_keys
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "base", "message"),
    [
        (replace(SMALL, rank=0), {}, "rank should be at least 1"),
        (replace(SMALL, alpha=0.0), {}, r"lora\.alpha above 0"),
        (replace(SMALL, layers=("to_q", "to_x")), {}, "no linear layer 'to_x'"),
        (SMALL, {"lora": "a.safetensors"}, r"leave generator\.lora out"),
        (SMALL, {"precision": "float16"}, "lost in float16"),
    ],
)
def test_what_cannot_be_trained(folder: Path, settings: LoraFitSettings, base: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lesson(folder, settings, **base)


def test_a_size_that_does_not_suit_the_vae(folder: Path) -> None:
    with pytest.raises(UserError, match="multiple of 2 pixels"):
        lesson(folder)(torch.rand(1, 3, 33, 33))


def test_the_loop_trains_it_resumes_and_draws_with_the_average(folder: Path, tmp_path: Path) -> None:
    settings = replace(
        SMALL, size=16, samples=12, batch=2, workers=0, warmup=0, save_every=2, sample_every=6, measure_every=1
    )

    def run(out: Path, stop_at: int | None = None) -> bytes:
        def tell(_verb: str, done: int, _total: int, _note: str) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        held = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        fit(Task(lesson(folder, settings), Painted(8, size=16), held, settings, RunFolder(out), 0), tell)
        return (out / USUAL).read_bytes()

    whole = run(tmp_path / "whole")
    assert (tmp_path / "whole/samples").exists()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=3)
    assert (tmp_path / "cut/training.pt").stat().st_size < 200_000, "the updates alone"
    assert run(tmp_path / "cut") == whole
    assert read_lora(str(tmp_path / "cut"), 1.0) is not None


def test_the_verb_trains_it_and_says_how_it_is_used(folder: Path, tmp_path: Path, said: Callable[..., Said]) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Painted(40).image(i).save(tmp_path / "photos" / f"{i}.png")
    lora = {"size": 32, "rank": 2, "samples": 8, "batch": 4, "held_out": 4, "workers": 0, "device": "cpu"}
    experiment = {
        "images": {"kind": "folder", "root": str(tmp_path / "photos")},
        "generator": {"kind": "unclip", "weights": str(folder), "steps": 2, "save_size": 32, "precision": "float32"},
        "lora": lora,
    }
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(experiment))
    told = said("check", tmp_path / "lora.yaml").stdout
    assert "lora: " in told
    assert "kB to continue from" in told, "the updates alone"
    done = said("fit-generator", tmp_path / "lora.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"generator.lora={tmp_path / 'out'}" in "".join(done.stderr.split("\n"))
    assert read_lora(str(tmp_path / "out"), 1.0)
    assert "finished: use it with <code>--set generator.lora=" in (tmp_path / "out" / "report.html").read_text()
    assert said("watch", "--out", tmp_path / "out").returncode == 0, "it ends by itself"
    done = said("check", tmp_path / "lora.yaml", "--set", "lora.batch=40")
    assert "Try --set lora.batch=18" in " ".join(done.stderr.split())
