"""Training a generator: the loop by hand on a small lesson, stopped, continued and refused."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from conftest import Painted
from genview.errors import UserError
from genview.generators.lesson import LessonSettings
from genview.store import RunFolder
from genview.training.average import MovingAverage
from genview.training.fit import fit, share_of_rate
from genview.training.task import Task, check_batch
from learners import Guess

QUICK = LessonSettings(
    size=8,
    zoom=1.0,
    samples=48,
    batch=8,
    rate=0.05,
    warmup=2,
    workers=0,
    save_every=2,
    measure_every=2,
    device="cpu",
)


def guess(folder: Path, settings: LessonSettings = QUICK, *, count: int = 20, stop_at: int = 0) -> tuple[Task, Guess]:
    """Train; at step `stop_at`, Ctrl-C strikes when progress is told."""
    torch.manual_seed(0)
    lesson = Guess()
    task = Task(lesson, Painted(count, size=8), torch.empty(0), settings, RunFolder(folder), seed=3)

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    fit(task, tell)
    return task, lesson


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in RunFolder(folder).measures() if m.name == "fit/loss"]


def test_the_loop_by_hand(tmp_path: Path) -> None:
    """Six steps of AdamW on the windows that were seen, with noise, rates, clipping and torch's own average."""
    settings = replace(QUICK, clip=0.05, measure_every=1)
    task, lesson = guess(tmp_path, settings)
    windows = lesson.seen
    torch.manual_seed(0)
    other = Guess()
    slow: Any = AveragedModel(
        other, avg_fn=lambda averaged, now, n: averaged + (now - averaged) * (1 - min(0.9995, (1 + n) / (10 + n)))
    )
    optimizer = torch.optim.AdamW(other.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    from genview.seeds import seed_of

    found = []
    for step, share in enumerate([0.5, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]):
        torch.manual_seed(seed_of(3, "", step, "noise"))
        optimizer.param_groups[0]["lr"] = 0.05 * share
        loss = other(windows[step]).mean()
        loss.backward()
        assert nn.utils.clip_grad_norm_(other.parameters(), 0.05) > 0.05, "something is clipped"
        optimizer.step()
        optimizer.zero_grad()
        slow.update_parameters(other)
        found.append((step + 1, loss.item()))
    assert dict(losses(tmp_path)) == pytest.approx(dict(found))
    for mine, theirs in zip(lesson.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert json.loads((tmp_path / "weight.json").read_text()) == pytest.approx(slow.module.last.bias.tolist())
    assert float(lesson.prepared) == 24, "twenty images fill three batches of eight"
    assert task.finished


def test_the_rate_rises_stays_and_falls() -> None:
    settings = replace(QUICK, samples=80)
    shares = [share_of_rate(step, settings) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert share_of_rate(0, replace(settings, warmup=0)) == 1


def test_ctrl_c_keeps_every_step_and_the_rest_is_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Saved in the middle of a measure too; and with another number of workers."""
    settings = replace(QUICK, save_every=100)
    guess(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        guess(tmp_path / "cut", settings, stop_at=4)
    assert torch.load(tmp_path / "cut" / "training.pt", weights_only=True)["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, lesson = guess(tmp_path / "cut", replace(settings, workers=1))
    assert len(lesson.seen) == 2
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (tmp_path / "cut" / "weight.json").read_bytes() == (tmp_path / "whole" / "weight.json").read_bytes()


def test_what_was_measured_after_the_last_save_is_not_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, save_every=4, measure_every=1)
    guess(tmp_path / "whole", settings)

    def killed(self: MovingAverage) -> None:
        if self.count == 5:
            raise SystemExit  # as a kill: nothing is saved
        update(self)

    update = MovingAverage.update
    monkeypatch.setattr(MovingAverage, "update", killed)
    with pytest.raises(SystemExit):
        guess(tmp_path / "cut", settings)
    assert [step for step, _ in losses(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(MovingAverage, "update", update)
    guess(tmp_path / "cut", settings)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_training_says_so_and_does_nothing(tmp_path: Path) -> None:
    guess(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = []
    task = Task(Guess(), Painted(20, size=8), torch.empty(0), QUICK, RunFolder(tmp_path), seed=3)
    fit(task, lambda *words: said.append(words))
    assert said == [("fit-generator", 6, 6, "finished already")]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_state_that_cannot_be_continued_is_named(tmp_path: Path) -> None:
    guess(tmp_path)
    (tmp_path / "weight.json").unlink()
    state = (tmp_path / "training.pt").read_bytes()
    other = torch.load(tmp_path / "training.pt", weights_only=True)
    other["lesson"]["more"] = torch.zeros(1)
    torch.save(other, tmp_path / "other.pt")
    for damaged in (b"", b"no state", state[: len(state) // 2], (tmp_path / "other.pt").read_bytes()):
        (tmp_path / "training.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"training\.pt cannot be continued"):
            guess(tmp_path)


def test_half_precision_rounds_no_image_and_compiling_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, measure_every=1)
    guess(tmp_path / "plain", settings)
    _, half = guess(tmp_path / "half", replace(settings, precision="bfloat16"))
    assert half.seen[0].dtype == torch.float32
    assert torch.equal((half.seen[0] * 255).round() / 255, half.seen[0]), "no bit is lost"
    plain, rounded = losses(tmp_path / "plain"), losses(tmp_path / "half")
    assert rounded != plain
    assert [v for _, v in rounded] == pytest.approx([v for _, v in plain], rel=0.1, abs=1e-3)
    graphs: list[Any] = []

    def noted(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **more: compiled(self, backend=noted, **more))
    guess(tmp_path / "compiled", replace(settings, compile=True))
    assert graphs
    assert dict(losses(tmp_path / "compiled")) == pytest.approx(dict(plain))


def test_what_is_not_finite_stops_the_training_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Guess.forward
    monkeypatch.setattr(Guess, "forward", lambda self, x: forward(self, x) / (len(self.seen) < 4))
    with pytest.raises(UserError, match=r"not finite at step 4.*training\.pt"):
        guess(tmp_path)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2


def test_batches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 images to train on, fewer than one batch of 8.*fit\.batch=2"):
        guess(tmp_path, count=5)
    with pytest.raises(UserError, match=r"fit\.device is cuda|found no"):
        guess(tmp_path, replace(QUICK, device="cuda")) if not torch.cuda.is_available() else pytest.fail("found no")


def test_faults_are_named_by_the_section_of_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def student(settings: LessonSettings) -> Task:
        return Task(Guess(), Painted(20, size=8), torch.empty(0), settings, RunFolder(tmp_path), 3, "distil")

    with pytest.raises(UserError, match=r"and distil\.batch at most their number.*--set distil\.batch=10"):
        fit(student(replace(QUICK, batch=32)), lambda *_: None)
    with pytest.raises(UserError, match=r"lora\.batch 8 cannot be divided among 3"):
        check_batch(QUICK, 20, 3, "lora")
    forward = Guess.forward
    monkeypatch.setattr(Guess, "forward", lambda self, x: forward(self, x) / 0)
    with pytest.raises(UserError, match=r"not finite at step 2.*lower distil\.rate"):
        fit(student(QUICK), lambda *_: None)


def test_unreadable_images_are_set_aside_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Painted(20, size=8, broken=(2, 3))
    fit(Task(Guess(), source, torch.empty(0), QUICK, RunFolder(tmp_path), seed=3), lambda *_: None)
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == [source.key(3), source.key(2)]
    assert {row["reason"] for row in rows} == {"made so"}
