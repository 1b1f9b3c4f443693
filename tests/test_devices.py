"""Several processes, parts of a batch, precisions: the same training, whatever it is done with."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor

from conftest import Painted
from genview.encoders import Backbone, BackboneSettings, Encoded
from genview.errors import UserError
from genview.methods import BarlowTwins, Learner, Losses, Method, MoCoV2, SimCLR, VICReg
from genview.pairs import Pairs, PairSettings
from genview.quality import ExactWeigher, Weighting
from genview.store import RunFolder
from genview.training import TrainSettings, devices, pretrain
from genview.training.loop import combined
from genview.training.optimizer import Sgd
from genview.training.pretrain import check, make_fabric
from genview.training.settings import Precision, share_of
from test_quality import HalvesAsTokens

TINY = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = BackboneSettings("vit_tiny_patch16_224", SMALL_VIT)
SETTINGS = TrainSettings(
    TINY, length="6 steps", batch=8, optimizer=Sgd(rate=0.02), workers=0, measure_every="1 steps", device="cpu"
)
QUEUE = MoCoV2(queue=32, embedding=8)
COLOURS = ExactWeigher(HalvesAsTokens(), torch.tensor([0.6, 0.8, 0.0]), Weighting(5.0))


def train(folder: Path, method: Method, settings: TrainSettings = SETTINGS, *, weigh: bool = True) -> RunFolder:
    run = RunFolder(folder)
    pairs = Pairs(Painted(24), PairSettings(recipe="small", size=32), seed=0)
    quality = COLOURS if weigh else None
    pretrain(method, pairs, settings, run, weigh=quality, probe=None, tell=lambda *_: None)
    return run


def losses(run: RunFolder) -> list[float]:
    return [m.value for m in run.measures() if m.name == "train/loss"]


def weights(run: RunFolder) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run.backbone)


def alike(one: RunFolder, other: RunFolder, tolerance: float) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=tolerance)
    mine, theirs = weights(one), weights(other)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=20 * tolerance)


def test_torchrun_with_two_processes_trains_as_one_process_does(tmp_path: Path) -> None:
    """Global batch, weights, BatchNorm statistics, queue: all of it. Slow because torchrun starts three Pythons."""
    alone = train(tmp_path / "alone", QUEUE)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = RunFolder(tmp_path / "two")
    assert len(losses(two)) == 6, "only the first process writes"
    alike(alone, two, 1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_train_as_the_whole_batch_does(parts: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, backbone=VIT)
    whole = train(tmp_path / "whole", QUEUE, settings)
    parted = train(tmp_path / "parts", QUEUE, replace(settings, accumulate=parts))
    alike(whole, parted, 1e-4)
    assert max(losses(whole)) > min(losses(whole)) + 1e-3, "it moves"


def learner_of(method: Method, backbone: BackboneSettings = TINY) -> Learner:
    return method.build(Backbone(backbone))


def test_what_cannot_be_done_in_parts_is_refused() -> None:
    parts = replace(SETTINGS, accumulate=2)
    with pytest.raises(UserError, match="looks at the other pairs of the batch"):
        check(learner_of(SimCLR(hidden=8, embedding=8)), parts, weighted=False, kind="simclr")
    with pytest.raises(UserError, match=r"training\.batchnorm=local"):
        check(learner_of(QUEUE), parts, weighted=False, kind="moco_v2")
    check(learner_of(QUEUE), replace(parts, batchnorm="local"), weighted=False, kind="moco_v2")
    with pytest.raises(UserError, match="take a multiple of 6"):
        share_of(replace(SETTINGS, accumulate=3), processes=2)


def test_a_loss_of_the_whole_batch_refuses_weights() -> None:
    barlow = learner_of(BarlowTwins(projection=8))
    check(barlow, SETTINGS, weighted=False, kind="barlow_twins")
    with pytest.raises(UserError, match="pairs cannot be weighted"):
        check(barlow, SETTINGS, weighted=True, kind="barlow_twins")
    check(learner_of(VICReg(projection=8)), SETTINGS, weighted=True, kind="vicreg")


def test_weights_multiply_losses_of_pairs_and_nothing_else() -> None:
    pairs, weight = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])
    assert combined(pairs, weight)[0] == 1.0
    assert combined(Losses(pairs, torch.tensor(10.0)), weight)[0] == 11.0
    loss, own = combined(Losses(None, torch.tensor(10.0)), None)
    assert loss == 10.0
    assert own is None


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_trains_almost_as_float32_does(kind: Precision, tmp_path: Path) -> None:
    settings = replace(SETTINGS, backbone=VIT)  # BatchNorm over eight pictures would magnify what is rounded
    exact = losses(train(tmp_path / "float32", QUEUE, settings))
    half = losses(train(tmp_path / kind, QUEUE, replace(settings, precision=kind)))
    assert half != exact
    steps = 1 if kind == "float16" else 6  # until its scale is found, float16 takes no steps
    assert half[:steps] == pytest.approx(exact[:steps], rel=0.02)
    assert len(set(half)) == 6


@pytest.mark.parametrize(("kind", "expected"), [("float32", None), ("bfloat16", torch.bfloat16), ("float16", None)])
def test_the_frozen_encoder_computes_in_bfloat16_where_the_training_does(
    kind: Precision, expected: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The similarities themselves are of float32 always: see pair_quality."""
    seen, encode = [], HalvesAsTokens.encode

    def noted(encoder: HalvesAsTokens, images: Tensor) -> Encoded:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return encode(encoder, images)

    monkeypatch.setattr(HalvesAsTokens, "encode", noted)
    train(tmp_path, QUEUE, replace(SETTINGS, precision=kind, length="1 steps"))
    assert seen == [expected]


def test_the_scale_of_float16_losses_survives_an_interruption(tmp_path: Path) -> None:
    """A loss that overflows halves the scale and takes no step; the checkpoint remembers it."""
    settings = replace(SETTINGS, precision="float16", save_every="2 steps")
    first = train(tmp_path, QUEUE, settings)
    saved = torch.load(first.checkpoints / "last.pt", weights_only=True)["scaler"]
    assert saved["scale"] > 0
    precision = MixedPrecision("16-mixed", "cpu")
    precision.load_state_dict({**saved, "scale": 3.0})
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    assert fabric.strategy.precision.state_dict()["scale"] == 3.0
    model = torch.nn.Linear(2, 1)
    module, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    before = model.weight.clone()
    fabric.backward((module(torch.ones(1, 2)) * float("inf")).sum())
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert fabric.strategy.precision.state_dict()["scale"] == 1.5


def test_a_compiled_backbone_trains_as_a_plain_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo's eager backend: what is tested is that the right thing is compiled, not the compiler."""
    seen = []

    def noted(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: compiled(self, backend=noted, **more))
    plain = train(tmp_path / "plain", QUEUE)
    fast = train(tmp_path / "compiled", QUEUE, replace(SETTINGS, compile=True))
    assert seen
    alike(plain, fast, 1e-5)
    assert weights(plain).keys() == weights(fast).keys(), "no prefix of the compiler's in the names"


if __name__ == "__main__":  # one of torchrun's processes
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), QUEUE)


def test_one_process_trains_alone_among_the_tasks_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker of a study that srun started: the others train runs of their own."""
    task = {"NTASKS": "4", "PROCID": "2", "LOCALID": "2", "NODEID": "0", "JOB_ID": "7", "JOB_NAME": "study"}
    for name, value in task.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fabric = make_fabric(replace(SETTINGS, devices=1))
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


def test_one_of_several_gpus_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU at hand: what Fabric is asked for."""
    asked: dict[str, Any] = {}

    class Asked:
        def __init__(self, **more: object) -> None:
            asked.update(more)

        def launch(self) -> None:
            asked["launched"] = True

    for name, value in (("is_available", True), ("is_bf16_supported", False), ("device_count", 4)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(devices, "Fabric", Asked)
    make_fabric(replace(SETTINGS, device="cuda:3"))
    assert (asked["accelerator"], asked["devices"], asked["num_nodes"]) == ("cuda", [3], 1)
    assert "strategy" not in asked
    assert asked["launched"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no GPU"):
        make_fabric(replace(SETTINGS, device="cuda:3"))


def test_a_device_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match=r"training\.device is gpu; it should be auto"):
        make_fabric(replace(SETTINGS, device="gpu"))
