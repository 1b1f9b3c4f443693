"""The training that evaluations share: layers, rates and crops by hand, and a resume that is exact."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from conftest import Painted
from genview.errors import UserError
from genview.evaluation import Reading, supervised
from genview.evaluation.augmented import Augmented, together
from genview.evaluation.classifier import Classifier
from genview.evaluation.finetune import layer_scales
from genview.evaluation.probe import Heads
from genview.evaluation.supervised import Course, Supervised, stepped
from genview.images import Subset
from genview.training.devices import alone
from genview.training.optimizer import Sgd
from learners import VIT
from subjects import PROBE, SIZE, SMALL, backbone, stopping

# Layers, rates, crops


def scales_by_name(net: nn.Module, decay: float) -> dict[str, float]:
    scales = layer_scales(net, decay)
    return {name: scales[id(parameter)] for name, parameter in net.named_parameters()}


def test_each_layer_has_a_share_of_the_rate_of_the_one_above() -> None:
    vit = scales_by_name(backbone(replace(VIT, args={**VIT.args, "depth": 2})).net, 0.5)
    assert {vit[name] for name in ("norm.weight", "blocks.1.mlp.fc1.bias", "blocks.1.norm1.weight")} == {0.5}
    assert {vit[name] for name in ("blocks.0.attn.qkv.weight", "blocks.0.norm2.bias")} == {0.25}
    assert {vit[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0.125}
    resnet = scales_by_name(backbone(replace(SMALL, args={**SMALL.args, "layers": [1, 1, 1, 2]})).net, 0.5)
    blocks = ["layer4.1.conv2", "layer4.0.bn1", "layer3.0.conv1", "layer2.0.conv1", "layer1.0.bn2", "conv1"]
    assert [resnet[f"{name}.weight"] for name in blocks] == [0.5**n for n in range(1, 7)]


@pytest.mark.parametrize("more", [{}, {"global_pool": "avg"}])
def test_layers_are_those_of_timm_for_the_model_with_a_classifier(more: dict[str, str]) -> None:
    """With mean pooling, timm counts the norm after it with the classifier."""
    settings = replace(VIT, args={**VIT.args, "depth": 2, **more})
    whole = timm.create_model(settings.name, num_classes=3, **settings.args)
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    groups = param_groups_layer_decay(whole, layer_decay=0.7)
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert theirs.pop("head.weight") == theirs.pop("head.bias") == 1.0
    assert scales_by_name(backbone(settings).net, 0.7) == pytest.approx(theirs)


def test_a_stepped_rate_is_a_tenth_after_three_and_after_four_fifths() -> None:
    assert [stepped(step, 10) for step in range(10)] == pytest.approx([1.0] * 6 + [0.1] * 2 + [0.01] * 2)


def test_crops_depend_on_seed_epoch_and_key_alone() -> None:
    source = Painted(4)
    data = Augmented(source, SIZE, 0.2, 0.5, seed=0)
    assert torch.equal(data[0, 1].pixels, Augmented(Subset(source, [1]), SIZE, 0.2, 0.5, seed=0)[0, 0].pixels)
    others = [data[1, 1], Augmented(source, SIZE, 0.2, 0.5, seed=1)[0, 1], data[0, 0]]
    assert not any(torch.equal(data[0, 1].pixels, other.pixels) for other in others)


def test_a_crop_of_everything_is_the_image_and_half_of_them_are_flipped() -> None:
    """Of the full area only a square fits; after ten others that do not, the middle is taken: the image."""
    source = Painted(1, size=SIZE)
    whole = torch.from_numpy(np.array(source.image(0))).permute(2, 0, 1)
    shown = [Augmented(source, SIZE, 1.0, flip, seed=0)[0, 0].pixels for flip in (0.0, 1.0)]
    assert torch.equal(shown[0], whole)
    assert torch.equal(shown[1], whole.flip(-1))
    data = Augmented(source, SIZE, 1.0, 0.5, seed=0)
    flips = sum(torch.equal(data[epoch, 0].pixels, whole.flip(-1)) for epoch in range(100))
    assert 35 <= flips <= 65


def test_the_next_image_comes_with_its_own_label() -> None:
    batch = together([Augmented(Painted(4, broken=(1,)), SIZE, 0.2, 0.5, 0)[0, i] for i in (1, 3)])
    assert (batch.row.tolist(), batch.label.tolist()) == ([2, 3], [2, 0])
    assert batch.unreadable == (("colour1/0001.png", "made so"),)
    with pytest.raises(UserError, match="images in a row"):
        Augmented(Painted(2, broken=(0, 1)), SIZE, 0.2, 0.5, 0)[0, 0]


# Whole trainings


def course(folder: Path, taught: Heads | Classifier, reading: Reading, **changes: object) -> Course:
    rates = taught.scales() if isinstance(taught, Heads) else {}
    found = Course(
        name="course",
        taught=taught,
        source=Painted(24, size=20),
        settings=Supervised(kind="finetune", batch=8, warmup="2 steps"),
        optimizer=Sgd(rate=0.1),
        steps=9,
        reading=reading,
        seed=0,
        folder=folder,
        scales=rates,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def classifier() -> Classifier:
    return Classifier(backbone(), 3, seed=0, smoothing=0.1, mixup=0.5)


def heads() -> Heads:
    return Heads(backbone(), 3, (0.1, 1.0), torch.arange(24) % 6 == 0, seed=0)


Make = Callable[[], Heads | Classifier]


@pytest.fixture(scope="module", params=[classifier, heads])
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Make, Heads | Classifier]:
    """What is taught, and what became of it."""
    make: Make = request.param
    taught = make()
    course(tmp_path_factory.mktemp("whole"), taught, Reading(SIZE)).run()
    return make, taught


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_resume_equals_no_interruption(
    uninterrupted: tuple[Make, Heads | Classifier], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before a state is kept, between two, or after the last step: the same weights, to the bit."""
    monkeypatch.setattr(supervised, "PAUSE", 0.0)
    make, whole = uninterrupted
    cut, begun = make(), make()
    fresh = {name: value.clone() for name, value in begun.trained.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path, begun, stopping(stop_at)).run()
    told: list[int] = []
    course(tmp_path, cut, Reading(SIZE, tell=lambda _what, done, _total, _note: told.append(done))).run()
    assert told[:1] == {2: [2], 5: [5], 9: []}[stop_at], "it went on after step 0, 3, or 9"
    weights = cut.trained.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.trained.state_dict().items())
    assert not any(torch.equal(fresh[name], value) for name, value in weights.items() if name.endswith("weight"))


def test_ctrl_c_keeps_every_step(uninterrupted: tuple[Make, Heads | Classifier], tmp_path: Path) -> None:
    """In the middle of an epoch, and where the last state is not a minute old."""
    make, whole = uninterrupted
    begun, cut = make(), make()
    reading = Reading(
        SIZE, tell=lambda _what, done, _total, _note: os.kill(os.getpid(), signal.SIGINT) if done == 5 else None
    )
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path, begun, reading).run()
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 5
    course(tmp_path, cut, Reading(SIZE)).run()
    weights = cut.trained.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.trained.state_dict().items())


def test_a_probe_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    model = heads()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    course(tmp_path, model, Reading(SIZE)).run()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert "backbone" not in "".join(torch.load(tmp_path / "training.pt", weights_only=True)["learner"])


def test_rates_rise_and_fall_and_every_group_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def watched(self: supervised._Loop) -> None:
        set_rates(self)
        rates.append(sorted({group["lr"] for group in self.optimizer.param_groups}))

    set_rates = supervised._Loop._set_rates
    monkeypatch.setattr(supervised._Loop, "_set_rates", watched)
    settings = Supervised(batch=8, warmup="2 steps", schedule="step")
    course(tmp_path, heads(), Reading(SIZE), settings=settings, steps=10, optimizer=Sgd(rate=1.0)).run()
    expected = [0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates == [pytest.approx([0.1 * rate, rate]) for rate in expected]


def test_lars_moves_weights_in_proportion_to_themselves(tmp_path: Path) -> None:
    """In the first step |Δw| = rate · 0.001 · |w|, whatever the gradient."""
    model, rule = heads(), replace(PROBE, optimizer="lars").rule
    weights = list(model.trained.parameters())[::2]
    before = [weight.detach().clone() for weight in weights]
    course(tmp_path, model, Reading(SIZE), optimizer=rule, steps=1, settings=Supervised(batch=8)).run()
    moved = [((new - old).norm() / old.norm()).item() for new, old in zip(weights, before, strict=True)]
    assert moved == pytest.approx([1e-4, 1e-3] * 2, rel=1e-3), "rates 0.1 and 1"


def test_half_precision_is_for_the_backbone_and_not_for_the_heads(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    model = heads()
    model.backbone.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    model.trained[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    course(tmp_path, model, Reading(SIZE), settings=Supervised(batch=8, precision="bfloat16"), steps=1).run()
    assert seen == [torch.bfloat16, torch.float32]


def test_one_process_trains_alone_among_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    fabric = alone("cpu", "float32")
    assert (fabric.world_size, fabric.device.type) == (1, "cpu")
    module, _ = fabric.setup(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1, requires_grad=True)]))
    assert not isinstance(module.module, nn.parallel.DistributedDataParallel)
