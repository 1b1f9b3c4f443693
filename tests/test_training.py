"""Durations, schedule, and a loop whose resume is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from conftest import Painted
from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import export, load, snippet
from genview.errors import UserError
from genview.images.origin import Origin
from genview.methods import Method, MoCoV2, SimSiam
from genview.pairs import Pairs, PairSettings
from genview.quality import Quality
from genview.store import RunFolder
from genview.training import TrainSettings, plan_of, pretrain
from genview.training.duration import steps_of
from genview.training.monitors import feature_std
from genview.training.optimizer import Sgd, rate_at, schedule

TINY = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
SETTINGS = TrainSettings(
    TINY,
    length="3 epochs",
    batch=8,
    optimizer=Sgd(rate=0.02),
    workers=0,
    measure_every="1 steps",
    device="cpu",
)
METHODS: list[Method] = [SimSiam(projection=16, bottleneck=8), MoCoV2(queue=32, embedding=8)]


def train(
    folder: Path, method: Method, settings: TrainSettings = SETTINGS, stop_at: int = 0, **more: object
) -> Backbone:
    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    pairs = Pairs(Painted(24), PairSettings(recipe="small", size=32), seed=0)
    weigh = more.get("weigh")
    return pretrain(method, pairs, settings, RunFolder(folder), weigh=weigh, probe=None, tell=tell)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 epochs", 30),
        ("1 epoch", 10),
        ("7 steps", 7),
        ("100 images", 10),
        ("95 images", 10),
        ("0.5 epochs", 5),
        ("0 epochs", 0),
    ],
)
def test_durations(text: str, steps: int) -> None:
    assert steps_of(text, images=105, batch=10) == steps


@pytest.mark.parametrize(
    ("text", "hint"), [("3 epocks", "'epochs'"), ("three", "Write a number"), ("", "Write a number")]
)
def test_durations_that_cannot_be_read(text: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        steps_of(text, images=100, batch=10)


def test_fewer_images_than_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match="fewer than one batch"):
        plan_of(SETTINGS, 7)


def test_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    rates = [rate_at(step, steps=10, warmup=2, peak=1.0) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx((1 + math.cos(math.pi * 4 / 8)) / 2)
    assert rates[9] < 0.05


def test_the_predictor_of_simsiam_keeps_its_rate() -> None:
    learner = METHODS[0].build(Backbone(TINY))
    optimizer = Sgd(rate=0.1).build(learner)
    rate = schedule(optimizer, Sgd(rate=0.1), 5, steps=10, warmup=0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in learner.named_parameters():
        assert rates[id(parameter)] == (0.1 if name.startswith("predictor") else rate)


def test_slow_copies_are_not_optimised() -> None:
    learner = METHODS[1].build(Backbone(TINY))
    held = {id(p) for group in Sgd().build(learner).param_groups for p in group["params"]}
    assert not held & {id(p) for p in learner.key_encoder.parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
@pytest.mark.parametrize("stop_at", [2, 4])
def test_resume_equals_no_interruption(method: Method, stop_at: int, tmp_path: Path) -> None:
    """Interrupted inside an epoch after a save (every 3 steps) or before one: the same losses, to the bit."""
    train(tmp_path / "whole", method)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", method, stop_at=stop_at)
    train(tmp_path / "cut", method)
    curves = [
        [(m.step, m.value) for m in RunFolder(tmp_path / name).measures() if m.name == "train/loss"]
        for name in ("whole", "cut")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 9
    weights = [safetensors.torch.load_file(tmp_path / name / "backbone.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_weights_multiply_the_losses_of_their_pairs(tmp_path: Path) -> None:
    """With weight on no pair nothing is learned from the losses: only weight decay would move weights."""

    def nothing(views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG001
        zero = torch.zeros(len(views[0]))
        return Quality(zero, zero, zero)

    settings = TrainSettings(
        TINY, length="1 steps", batch=8, optimizer=Sgd(rate=0.1, weight_decay=0.0), workers=0, device="cpu"
    )
    still = train(tmp_path / "still", METHODS[0], settings, weigh=nothing)
    moved = train(tmp_path / "moved", METHODS[0], settings)
    assert not torch.equal(next(still.parameters()), next(moved.parameters()))
    measures = {m.name: m.value for m in RunFolder(tmp_path / "still").measures()}
    assert measures["train/loss"] == 0.0
    assert (tmp_path / "still" / "pairs" / "examples.npz").exists()


def test_example_pairs_are_the_extremes(tmp_path: Path) -> None:
    def by_brightness(views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG001
        weight = views[0].mean(dim=(1, 2, 3))
        return Quality(weight, weight, weight)

    train(tmp_path, METHODS[0], weigh=by_brightness)
    with np.load(tmp_path / "pairs" / "examples.npz", allow_pickle=False) as examples:
        weight, a = examples["weight"], examples["a"]
        assert list(weight) == sorted(weight)
        assert weight == pytest.approx(a.mean(axis=(1, 2, 3)) / 255, abs=1e-4)
        assert len(set(examples["keys"])) > 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    calls = []

    def poison(views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG001
        calls.append(1)
        weight = torch.ones(len(views[0])) if len(calls) < 5 else torch.full((len(views[0]),), float("nan"))
        return Quality(weight, weight, weight)

    with pytest.raises(UserError, match="not finite at step 5"):
        train(tmp_path, METHODS[0], weigh=poison)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert all(bool(torch.isfinite(v).all()) for v in state["learner"].values())


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be continued"):
        train(tmp_path, METHODS[0])


def test_feature_std_tells_collapse_from_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4096, 64, generator=generator)) == pytest.approx(1.0, abs=0.05)
    assert feature_std(torch.ones(32, 64)) == 0.0


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_exported_backbone_loads_into_timm_strictly(stride: int, tmp_path: Path) -> None:
    settings = BackboneSettings(TINY.name, TINY.args, stem_stride=stride)  # type: ignore[arg-type]
    torch.manual_seed(0)
    backbone = Backbone(settings).eval()
    path = tmp_path / "backbone.safetensors"
    export(backbone, path)
    scope: dict[str, object] = {}
    exec(snippet(settings, path), scope)  # the lines that users are told to run
    model = scope["model"]
    assert isinstance(model, torch.nn.Module)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        assert torch.allclose(model.eval()((images - backbone.mean) / backbone.std), expected)
        assert torch.equal(load(settings, path).eval()(images), expected)


def test_loading_a_backbone_into_another_architecture_is_a_clear_error(tmp_path: Path) -> None:
    export(Backbone(TINY), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="does not fit the backbone 'resnet34'"):
        load(BackboneSettings("resnet34"), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="run `genview pretrain` first"):
        load(TINY, tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BackboneSettings("resnet5O"), "Did you mean 'resnet50'"),
        (BackboneSettings("resnet18", {"chanels": [1]}), "does not take these args"),
        (BackboneSettings("vit_tiny_patch16_224", stem_stride=2), "stem_stride 2 is for ResNets"),
    ],
)
def test_backbones_that_cannot_be_made(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(settings)


def test_the_backbone_normalises_for_itself() -> None:
    backbone = Backbone(TINY).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TINY.mean, TINY.std))
    assert timm.is_model("resnet18")
    with torch.no_grad():
        assert torch.allclose(backbone(images), backbone.net((images - mean) / std))
    assert not any(name.split(".")[-1] == "mean" for name in backbone.state_dict())
