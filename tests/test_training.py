"""Durations, schedule, and a loop whose resume is exact."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor

from conftest import Painted
from genview.encoders import Backbone, BackboneSettings
from genview.encoders.backbone import export, load, snippet
from genview.errors import UserError
from genview.images.origin import Origin
from genview.methods import Method, MoCoV2, SimSiam
from genview.pairs import Crops, Pairs, PairSettings
from genview.quality import Quality
from genview.store import RunFolder, read_table
from genview.training import TrainSettings, plan_of, pretrain
from genview.training.best import Best
from genview.training.duration import bytes_of, steps_of
from genview.training.loggers import TensorBoard
from genview.training.monitors import feature_std, rank_me, tails
from genview.training.optimizer import AdamW, Lars, Sgd, groups, rate_at, schedule
from genview.training.pretrain import check_views
from genview.training.settings import Precision
from learners import SMALL, VIT, learner_of

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

    crops = Crops(count=2, size=16) if method.kind in ("swav", "dino") else None
    views = PairSettings(recipe="small", size=32, crops=crops)
    pairs = Pairs(Painted(24), views, seed=0)
    weigh, probe = more.get("weigh"), more.get("probe")
    return pretrain(method, pairs, settings, RunFolder(folder), weigh=weigh, probe=probe, tell=tell)  # type: ignore[arg-type]


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


def assert_equal_runs(one: RunFolder, other: RunFolder, steps: int) -> None:
    curves = [[(m.step, m.value) for m in run.measures() if m.name == "train/loss"] for run in (one, other)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == steps
    weights = [safetensors.torch.load_file(run.backbone) for run in (one, other)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    states = [torch.load(run.checkpoints / "last.pt", weights_only=True) for run in (one, other)]
    assert all(torch.equal(value, states[1]["learner"][name]) for name, value in states[0]["learner"].items())
    assert states[0]["scaler"] == states[1]["scaler"]


@pytest.mark.parametrize("stop_at", [2, 4])
def test_resume_equals_no_interruption(stop_at: int, tmp_path: Path) -> None:
    """Interrupted inside an epoch after a save (every 3 steps) or before one: the same losses, to the bit."""
    train(tmp_path / "whole", METHODS[0])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", METHODS[0], stop_at=stop_at)
    train(tmp_path / "cut", METHODS[0])
    assert_equal_runs(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut"), 9)


SCORES = (0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6, 0.8)


@pytest.mark.parametrize("stop_at", [0, 2, 5, 9])
def test_the_best_backbone_is_kept_whatever_happens(stop_at: int, tmp_path: Path) -> None:
    """Stopped before a checkpoint, or after one (every 3 steps) with candidates that are newer than it."""
    settings, run = replace(SETTINGS, probe_every="1 steps"), RunFolder(tmp_path)
    seen: dict[int, dict[str, Tensor]] = {}

    def probe(backbone: Backbone) -> list[tuple[str, float]]:
        """A score for each step, which BatchNorm counts: two views each; and one that does not matter."""
        step = int(backbone.net.bn1.num_batches_tracked) // 2
        seen[step] = {name: value.clone() for name, value in backbone.net.state_dict().items()}
        return [("score", SCORES[step - 1]), ("other", 1.0)]

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            train(run.root, METHODS[0], settings, stop_at=stop_at, probe=probe)
        # As if a candidate of a step that will be taken again had been left by a machine that rounds otherwise.
        export(Backbone(TINY), run.checkpoints / "best-000000008.safetensors", {"step": "8", "score": "2.0"})
    train(run.root, METHODS[0], settings, probe=probe)
    assert [(m.step, m.value) for m in run.measures() if m.name == "online/score"] == [*enumerate(SCORES, 1)]
    with safetensors.safe_open(run.best, "pt") as file:
        assert file.metadata() == {"step": "4", "score": "0.9"}
    weights = safetensors.torch.load_file(run.best)
    assert all(torch.equal(value, weights[name]) for name, value in seen[4].items())
    assert not list(run.checkpoints.glob("best-*"))


def test_of_equally_good_backbones_the_last_is_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, probe_every="2 steps", length="5 steps")
    train(tmp_path, METHODS[0], settings, probe=lambda _: [("score", 0.5)])
    run = RunFolder(tmp_path)
    weights = [safetensors.torch.load_file(path) for path in (run.best, run.backbone)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_damaged_candidate_is_a_clear_error(tmp_path: Path) -> None:
    for content in (b"", safetensors.torch.save({"a": torch.ones(1)})):
        (tmp_path / "best-000000001.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"best-000000001\.safetensors is damaged"):
            Best.continued(tmp_path, 1)


@pytest.mark.parametrize("method", SMALL, ids=lambda m: m.kind)
def test_every_method_goes_on_within_an_epoch_with_other_workers(method: Method, tmp_path: Path) -> None:
    """Slow copies, queues, prototypes, centres, schedules, drop path, and for one of them float16's scale."""
    scaled: Precision = "float16" if method.kind == "moco_v2" else "float32"
    backbone = replace(TINY, args={**TINY.args, "drop_path_rate": 0.2})
    settings = replace(SETTINGS, backbone=backbone, length="5 steps", save_every="2 steps", precision=scaled)
    train(tmp_path / "whole", method, settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", method, settings, stop_at=3)
    train(tmp_path / "cut", method, replace(settings, workers=1))
    assert_equal_runs(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut"), 5)


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
    assert (tmp_path / "still" / "pairs" / "pictured.parquet").exists()


def test_example_pairs_are_what_the_encoder_saw(tmp_path: Path) -> None:
    def by_brightness(views: Sequence[Tensor], origin: Origin, progress: float) -> Quality:  # noqa: ARG001
        weight = views[0].mean(dim=(1, 2, 3))
        return Quality(weight, weight, weight)

    train(tmp_path, METHODS[0], weigh=by_brightness)
    examples = read_table(tmp_path / "pairs" / "pictured.parquet")
    weight = examples["weight"]
    assert list(weight) == sorted(weight)
    bright = [np.asarray(Image.open(io.BytesIO(file))).mean() / 255 for file in examples["a"]]
    assert weight == pytest.approx(bright, abs=1e-4)
    assert [key.split("/")[0] for key in examples["key"]] == examples["class"].tolist(), (
        "as `Painted` names its images"
    )
    assert len(set(examples["key"])) > 1


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


def test_excluded_parameters_have_no_decay_and_no_adaption() -> None:
    """Biases and norms take a plain step of the full rate; a weight's step is in proportion to its own norm."""
    learner = learner_of(METHODS[0])
    sorted_ = groups(learner, Lars())
    excluded = [p for group in sorted_ if not group["decays"] for p in group["params"]]
    assert {p.ndim for p in excluded} == {1}
    assert all(p.ndim > 1 for group in sorted_ if group["decays"] for p in group["params"])
    optimizer = Lars(rate=1.0, momentum=0.0, weight_decay=0.01).build(learner)
    weight, bias = learner.backbone.net.conv1.weight, excluded[0]
    before = weight.detach().clone(), bias.detach().clone()
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    assert torch.allclose(bias, before[1] - 100.0)
    ratio = before[0].norm() / (weight.grad.norm() + 0.01 * before[0].norm())
    assert torch.allclose(weight, before[0] - 0.001 * ratio * (weight.grad + 0.01 * before[0]), rtol=1e-3)


def test_layers_below_the_last_have_lower_rates() -> None:
    learner = learner_of(METHODS[1], VIT)
    optimizer = AdamW(rate=1.0, layer_decay=0.5).build(learner)
    rate = schedule(optimizer, AdamW(rate=1.0, layer_decay=0.5), 0, steps=10, warmup=0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    net = learner.backbone.net
    patches, block, norm = (
        rates[id(p)] for p in (net.patch_embed.proj.weight, net.blocks[0].norm1.weight, net.norm.weight)
    )
    assert patches == pytest.approx(block / 2)
    assert block == norm == rate, "timm counts the last norm with the last block"
    assert rates[id(learner.head[0].weight)] == rate  # type: ignore[index, union-attr]


def test_decay_goes_along_a_cosine_to_its_end() -> None:
    settings = AdamW(weight_decay=0.04, weight_decay_end=0.4, exclude=True)
    optimizer = settings.build(learner_of(METHODS[0]))
    schedule(optimizer, settings, 5, steps=10, warmup=0)
    decays = sorted({group["weight_decay"] for group in optimizer.param_groups})
    assert decays == pytest.approx([0.0, 0.22])
    assert rate_at(10, steps=10, warmup=0, peak=1.0, end=0.1) == pytest.approx(0.1)


def test_rank_me_counts_directions() -> None:
    chance = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 4, generator=chance))[0]
    assert rank_me(basis.T.repeat(10, 1)) == pytest.approx(4.0, rel=1e-3)
    assert rank_me(torch.ones(32, 64)) == pytest.approx(1.0, rel=1e-3)
    assert rank_me(torch.eye(16)) == pytest.approx(16.0, rel=1e-3)


def test_tails_are_quantiles() -> None:
    assert tails(torch.arange(101.0)) == (5.0, 95.0)


@pytest.mark.parametrize(("text", "count"), [("2 GB", 2e9), ("0 GB", 0), ("0.5 mb", 5e5)])
def test_sizes(text: str, count: int) -> None:
    assert bytes_of(text) == count
    with pytest.raises(UserError, match="'2 GB'"):
        bytes_of("2 gallons")


def test_views_that_a_method_does_not_take_are_refused() -> None:
    crops = PairSettings(crops=Crops())
    for method in SMALL:
        learner = learner_of(method)
        check_views(learner, PairSettings(), method.kind)
        if learner.takes != "crops":
            with pytest.raises(UserError, match=r"pairs\.crops=null"):
                check_views(learner, crops, method.kind)
        if learner.takes != "many":
            with pytest.raises(UserError, match="multi_positive"):
                check_views(learner, PairSettings(positives=3), method.kind)


def test_measures_go_to_tensorboard_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, METHODS[0], replace(SETTINGS, log=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [(m.step, m.value) for m in RunFolder(tmp_path).measures() if m.name == "train/loss"]
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in shown] == [step for step, _ in written]
    assert [value for _, value in shown] == pytest.approx([value for _, value in written])


def test_a_logger_that_is_not_installed_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'genview\[tensorboard\]'"):
        TensorBoard(tmp_path, 0)
