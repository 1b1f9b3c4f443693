"""Whatever goes wrong on the way, the finished store is that of an undisturbed run, byte for byte."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from torch import Tensor

from echo import Echo, analysed, files, planned, quiet
from genview.errors import UserError
from genview.generators import Maker, Plan, Text, ViewTable
from genview.generators.generate import finish, in_this_process
from genview.generators.merge import merge, unfinished
from genview.generators.shard import run_shard
from genview.store import parts
from made_stores import COUNT, SETTINGS, finished, undisturbed_store, unmade_plan

KILLS = 20
WORKERS = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from echo import Echo
from genview.generators import Maker, Plan
from genview.generators.merge import unfinished
from genview.generators.shard import run_shard

def work(folder):
    plan = Plan.open(Path(folder))
    for shard in unfinished(plan):
        run_shard(plan, shard, Maker(Echo(pause=0.01), 1))
    os._exit(0)

for line in sys.stdin:  # a fork of a process that has everything loaded starts at once
    count, folder = line.strip().split(" ", 1)
    children = [os.fork() or work(folder) for _ in range(int(count))]
    print(*children, flush=True)
    for child in children:
        os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed_store(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return unmade_plan(tmp_path)


class Workers:
    """A process whose forks each make the unfinished shards of a plan."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def start(self, plan: Plan, count: int) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count} {plan.folder}\n")
        self.process.stdin.flush()
        return [int(number) for number in self._line().split()]

    def wait(self) -> None:
        assert self._line() == "ended\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    started = Workers()
    yield started
    started.process.communicate(timeout=60)


def test_workers_killed_at_twenty_random_moments(workers: Workers, plan: Plan, undisturbed: dict[str, bytes]) -> None:
    chance, at_work = random.Random(0), 0
    for _ in range(KILLS):
        (child,) = workers.start(plan, 1)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        workers.wait()
        at_work += bool(unfinished(plan))
    assert at_work > KILLS / 4, "they were killed at work, not after it"
    assert finished(plan) == undisturbed


def test_two_workers_on_the_same_shards_at_once_do_no_harm(
    workers: Workers, plan: Plan, undisturbed: dict[str, bytes]
) -> None:
    workers.start(plan, 2)
    workers.wait()
    assert unfinished(plan) == []
    assert finished(plan) == undisturbed


class Raises(Echo):
    def sample(self, *_args: object, **_more: object) -> NoReturn:
        raise RuntimeError("the driver went away")


def test_a_worker_that_raises_loses_its_shard_only(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 2, Maker(Echo(), 1))
    with pytest.raises(RuntimeError, match="driver"):
        run_shard(plan, 3, Maker(Raises(), 1))
    assert 2 not in unfinished(plan)
    assert 3 in unfinished(plan)
    assert finished(plan) == undisturbed


@pytest.mark.parametrize("files_before", range(4))
def test_a_full_disk(
    files_before: int, plan: Plan, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(files_before))
    flush = os.fsync

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"is full\. What was finished before is kept"):
        finish(plan, in_this_process(Maker(Echo(), 1)), quiet)
    assert not list(plan.folder.glob(".*")), "what was begun is taken away, to leave room"
    monkeypatch.undo()
    assert finished(plan) == undisturbed


def test_a_disk_that_fills_up_while_the_views_are_planned(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(tmp_path / "analysis", COUNT)
    calls = iter([None, None])

    def full(_descriptor: int) -> None:
        if next(calls, 0) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="is full"):
        planned(tmp_path / "views", SETTINGS)
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds no plan"):
        Plan.open(tmp_path / "views")
    assert finished(planned(tmp_path / "views", SETTINGS)) == undisturbed


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_a_clock_that_jumps(
    shift: float, plan: Plan, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    run_shard(plan, 0, Maker(Echo(), 1))
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    run_shard(plan, 1, Maker(Echo(), 1))
    for path in plan.folder.rglob("*"):
        os.utime(path, (now() - 2 * shift, now() - 2 * shift))
    assert finished(plan) == undisturbed


class Interrupted(Echo):
    """Another worker makes the shard, and the store is merged, while this one samples."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        self.meanwhile()
        return (super().sample(condition, level, guidance, seeds, texts).int() ^ 1).byte()  # other hardware


def test_a_worker_that_comes_too_late_changes_nothing(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 1, Maker(Interrupted(lambda: finished(plan)), 1))
    assert merge(plan, quiet) == []
    assert files(plan.folder) == undisturbed


def test_a_worker_whose_file_was_swept_after_the_merge_ends_quietly(
    plan: Plan, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = parts.settle

    def others_finish(temporary: Path, path: Path) -> None:
        monkeypatch.undo()
        finished(plan)
        assert not temporary.exists()
        settle(temporary, path)

    monkeypatch.setattr("genview.store.tars.settle", others_finish)
    run_shard(plan, 1, Maker(Echo(), 1))
    assert files(plan.folder) == undisturbed


def test_two_that_merge_at_once_leave_one_store(
    plan: Plan, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(Maker(Echo(), 1))(plan, unfinished(plan), quiet)
    settle = parts.settle
    begun: list[Path] = []

    def other_is_faster(temporary: Path, path: Path, *, first: bool = False) -> None:
        if not begun:
            begun.append(path)
            assert merge(plan, quiet) == []
        settle(temporary, path, first=first)

    monkeypatch.setattr(parts, "settle", other_is_faster)
    assert merge(plan, quiet) == []
    assert begun == [plan.folder / "index.arrow"]
    assert files(plan.folder) == undisturbed


def test_readers_wait_while_shards_are_made_anew(plan: Plan) -> None:
    finished(plan)
    plan.sidecar(2).unlink()
    with pytest.raises(RuntimeError, match="driver"):
        finish(plan, in_this_process(Maker(Raises(), 1)), quiet)
    with pytest.raises(UserError, match="is not finished"):
        ViewTable(plan.folder)


def test_the_temporary_file_of_a_live_worker_is_left_alone(plan: Plan) -> None:
    live = plan.folder / ".part-00001.tar.elsewhere-7-00.part"
    live.write_bytes(b"being written")
    run_shard(plan, 0, Maker(Echo(), 1))
    planned(plan.folder, SETTINGS)
    assert live.exists()
