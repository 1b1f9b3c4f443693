"""A lease passes on when its holder is dead, and only then."""

from __future__ import annotations

import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import Painted
from genview.errors import UserError
from genview.experiment import Experiment, Stages, load
from genview.generators.lesson import LessonSettings
from genview.launch.lease import Leases, alone, owner
from genview.store import RunFolder
from genview.training.fit import fit
from genview.training.task import Task
from learners import Guess
from made_studies import made_study, silent
from marks import wait_for


def test_the_lease_of_the_dead_passes_on_and_that_of_the_slow_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(10**9, 10**12, 10**9))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))  # the clock of the day leaps on, and back
    mine, other = Leases(tmp_path, 0.4), Leases(tmp_path, 0.4)
    (tmp_path / "dead.lease").write_bytes(b"0123456789abcdef 7\n")
    os.utime(tmp_path / "dead.lease", (0, 0))
    with mine.held("slow") as held:
        assert held
        deadline = time.monotonic() + 1.2
        taken = False
        while time.monotonic() < deadline:
            with other.held("slow") as slow, other.held("dead") as dead:
                assert not slow
                taken |= dead
                assert not dead or time.monotonic() > deadline - 0.8, "patience is kept"
            os.utime(tmp_path / "slow.lease", (0, 0))
            time.sleep(0.05)
        assert taken
    with other.held("slow") as held:
        assert held
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_process_of_this_machine_that_is_gone_passes_on_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    home = owner(0).rpartition(b"/")[0]
    owners = {"gone": owner(gone.pid), "here": owner(os.getpid()), "elsewhere": b"x" + owner(gone.pid)}
    for name, mark in {**owners, "odd": home + b"/x", "old": b"7"}.items():
        (tmp_path / f"{name}.lease").write_bytes(b"0123456789abcdef " + mark + b" 7\n")
    (tmp_path / "empty.lease").write_bytes(b"")
    died: list[str] = []
    leases = Leases(tmp_path, 1000, died.append)
    for name in (*owners, "odd", "old", "empty"):
        with leases.held(name) as held:
            assert held == (name == "gone"), name
            if held:
                wait_for(lambda: b" 0\n" in (tmp_path / "gone.lease").read_bytes())
                with Leases(tmp_path, 1000).held(name) as again:
                    assert not again
    assert died == ["gone"]


def test_who_was_taken_for_dead_leaves_the_lease_of_the_other_alone(tmp_path: Path) -> None:
    with Leases(tmp_path, 0.2).held("a") as held:
        assert held
        (tmp_path / "a.lease").unlink()
        with Leases(tmp_path, 0.2).held("a") as again:
            assert again
            wait_for(lambda: b" 2\n" in (tmp_path / "a.lease").read_bytes())
            content = (tmp_path / "a.lease").read_bytes()
            time.sleep(0.1)
            assert (tmp_path / "a.lease").read_bytes()[:16] == content[:16]
    assert not list(tmp_path.iterdir())


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        alone(tmp_path, "training", said.append, 0.4),
        pytest.raises(UserError, match="Another process is at the training in"),
        alone(tmp_path, "training", said.append, 0.4),
    ):
        pass
    assert said
    assert not list(tmp_path.iterdir())
    (tmp_path / "training.lease").write_bytes(b"0123456789abcdef of another machine 7\n")
    start = time.monotonic()
    with alone(tmp_path, "training", said.append, 0.4):
        assert time.monotonic() - start > 0.3, "the patience is kept"


def test_a_second_training_in_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_study(tmp_path)
    experiment = load(Experiment, tmp_path / "base.yaml", ["generator=null", "quality=null", "baseline=false"])
    stages = Stages.open(experiment, tmp_path / "run")
    settings = LessonSettings(size=8, samples=16, batch=8, workers=0, device="cpu")
    task = Task(Guess(), Painted(20, size=8), torch.empty(0), settings, RunFolder(tmp_path / "fit"), seed=3)
    for module, folder, what, train in (
        ("genview.experiment.stages", stages.run.checkpoints, "pretraining", partial(stages.pretrain, silent)),
        ("genview.training.fit", task.run.root, "training", partial(fit, task, silent)),
    ):
        monkeypatch.setattr(f"{module}.alone", partial(alone, patience=0.4))
        with Leases(folder, 0.4).held(what), pytest.raises(UserError, match=f"Another process is at the {what}"):
            train()
        assert not list(folder.iterdir())
        train()
        assert list(folder.iterdir())
