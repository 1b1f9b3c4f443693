"""A loop whose resume is exact, the best backbone it keeps, and what it records."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from conftest import Painted
from genview.encoders import Backbone
from genview.encoders.backbone import export
from genview.errors import UserError
from genview.images.origin import Origin
from genview.methods import Method
from genview.pairs import Crops, Pairs, PairSettings
from genview.quality import Quality
from genview.store import RunFolder, read_table
from genview.training import TrainSettings, plan_of, pretrain
from genview.training.best import Best
from genview.training.interrupt import HEARD, Interruption
from genview.training.loggers import TensorBoard
from genview.training.optimizer import Sgd
from genview.training.pretrain import check_views
from genview.training.settings import Precision
from learners import METHODS, SMALL, Probing, learner_of
from learners import RESNET as TINY

SETTINGS = TrainSettings(
    TINY,
    length="3 epochs",
    batch=8,
    optimizer=Sgd(rate=0.02),
    workers=0,
    measure_every="1 steps",
    device="cpu",
)


def train(
    folder: Path,
    method: Method,
    settings: TrainSettings = SETTINGS,
    stop_at: int = 0,
    at_step: Callable[[int], None] = lambda _: None,
    **more: object,
) -> Backbone:
    """Train; at step `stop_at` the run ends as a killed one does."""

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt
        at_step(done)

    crops = Crops(count=2, size=16) if method.kind in ("swav", "dino") else None
    views = PairSettings(recipe="small", size=32, crops=crops)
    pairs = Pairs(Painted(24), views, seed=0)
    weigh, probe = more.get("weigh"), more.get("probe")
    return pretrain(method, pairs, settings, RunFolder(folder), weigh=weigh, probe=probe, tell=tell)  # type: ignore[arg-type]


def test_fewer_images_than_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match="fewer than one batch"):
        plan_of(SETTINGS, 7)


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


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_every_step_and_the_rest_is_as_if_nothing_had_been(
    kind: signal.Signals, tmp_path: Path
) -> None:
    """Also where a workload manager ends the workers of the data loader with it."""
    settings = replace(SETTINGS, workers=2)

    def everybody(step: int) -> None:
        if step == 2:  # from another process, as torch's workers take signals of their parent for its wish
            everyone = [os.getpid(), *(child.pid for child in active_children())]
            subprocess.run(["kill", "-s", str(kind.value), *map(str, everyone)], check=True)

    train(tmp_path / "whole", METHODS[0])
    run, before = RunFolder(tmp_path / "cut"), [signal.getsignal(number) for number in HEARD]
    with pytest.raises(KeyboardInterrupt):
        train(run.root, METHODS[0], settings, at_step=everybody)
    assert torch.load(run.checkpoints / "last.pt", weights_only=True)["step"] == 2
    assert [signal.getsignal(number) for number in HEARD] == before, "whoever listened before listens again"
    train(run.root, METHODS[0], settings)
    assert_equal_runs(RunFolder(tmp_path / "whole"), run, 9)


def test_workers_that_end_while_they_are_waited_for_are_an_error_unless_a_signal_ended_them() -> None:
    def batches(interruption: Interruption, *, asked: bool) -> Iterator[int]:
        yield 1
        interruption.asked = asked
        raise RuntimeError("a worker died")

    heard = Interruption()
    assert list(heard.until_asked(batches(heard, asked=True))) == [1]
    assert list(heard.until_asked([2, 3])) == []
    with pytest.raises(RuntimeError, match="a worker died"):
        list(Interruption().until_asked(batches(heard, asked=False)))


SCORES = (0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6, 0.8)


@pytest.mark.parametrize("stop_at", [0, 2, 5, 9])
def test_the_best_backbone_is_kept_whatever_happens(stop_at: int, tmp_path: Path) -> None:
    """Stopped before a checkpoint, or after one (every 3 steps) with candidates that are newer than it."""
    settings, run = replace(SETTINGS, probe_every="1 steps"), RunFolder(tmp_path)
    seen: dict[int, dict[str, Tensor]] = {}

    def look(backbone: Backbone) -> list[tuple[str, float]]:
        """A score for each step, which BatchNorm counts: two views each; and one that does not matter."""
        step = int(backbone.net.bn1.num_batches_tracked) // 2
        seen[step] = {name: value.clone() for name, value in backbone.net.state_dict().items()}
        return [("score", SCORES[step - 1]), ("other", 1.0)]

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            train(run.root, METHODS[0], settings, stop_at=stop_at, probe=Probing(look))
        # As if a candidate of a step that will be taken again had been left by a machine that rounds otherwise.
        export(Backbone(TINY), run.checkpoints / "best-000000008.safetensors", {"step": "8", "score": "2.0"})
    train(run.root, METHODS[0], settings, probe=Probing(look))
    noted = [m for m in run.measures() if m.name == "online/score"]
    assert [(m.step, m.value) for m in noted] == [*enumerate(SCORES, 1)]
    assert {m.protocol for m in noted} == {"probing-1"}, "also of what an interrupted run had noted"
    assert {m.protocol for m in run.measures() if m.name.startswith("train/")} == {""}
    with safetensors.safe_open(run.best, "pt") as file:
        assert file.metadata() == {"step": "4", "score": "0.9"}
    weights = safetensors.torch.load_file(run.best)
    assert all(torch.equal(value, weights[name]) for name, value in seen[4].items())
    assert not list(run.checkpoints.glob("best-*"))


def test_of_equally_good_backbones_the_last_is_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, probe_every="2 steps", length="5 steps")
    train(tmp_path, METHODS[0], settings, probe=Probing(lambda _: [("score", 0.5)]))
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
