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

from echo import Echo, analysed, files, make, planned, quiet
from genview.errors import UserError
from genview.generators import GenerateSettings, Maker, Plan, Text, ViewTable
from genview.generators.generate import finish, in_this_process
from genview.generators.merge import merge, unfinished
from genview.generators.plan import Tell
from genview.generators.shard import run_shard
from genview.store import parts, read_table, write_table

SETTINGS = GenerateSettings(shard=4, draws=2)
COUNT = 24
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
    folder = tmp_path_factory.mktemp("undisturbed")
    analysed(folder / "analysis", COUNT)
    make(folder / "views", SETTINGS, batch=1)
    return files(folder / "views")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan nothing of which is made."""
    analysed(tmp_path / "analysis", COUNT)
    return planned(tmp_path / "views", SETTINGS)


def finished(plan: Plan) -> dict[str, bytes]:
    """Finish the store and return its files."""
    finish(plan, in_this_process(Maker(Echo(), 1)), quiet)
    table = ViewTable(plan.folder)
    assert len(table) == table.planned == COUNT * 2
    return files(plan.folder)


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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def shard_of(plan: Plan, number: int) -> Path:
    return next(plan.folder.glob(f"part-{number:05d}-*.tar"))


@pytest.mark.parametrize("damage", [cut, emptied, Path.unlink], ids=["cut", "emptied", "gone"])
@pytest.mark.parametrize("what", ["tar", "sidecar", "tar of a merged store"])
def test_a_damaged_shard_is_made_anew(
    damage: Callable[[Path], None], what: str, plan: Plan, undisturbed: dict[str, bytes]
) -> None:
    in_this_process(Maker(Echo(), 1))(plan, unfinished(plan), quiet)
    if what == "tar of a merged store":
        assert merge(plan, quiet) == []
    damage(plan.sidecar(3) if what == "sidecar" else shard_of(plan, 3))
    assert finished(plan) == undisturbed


def test_a_cut_shard_of_a_merged_store_is_a_clear_error_where_it_is_read(plan: Plan) -> None:
    finished(plan)
    for number in range(len(plan)):
        emptied(shard_of(plan, number))
    with pytest.raises(UserError, match="cut short: run `genview generate`"):
        ViewTable(plan.folder).view(0)


def test_half_written_files_are_not_taken_for_whole_ones(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 1, Maker(Echo(), 1))
    whole = plan.sidecar(1).read_bytes()
    plan.sidecar(1).unlink()
    plan.sidecar(1).with_name(f".{plan.sidecar(1).name}.there-1-ab.part").write_bytes(whole[: len(whole) // 2])
    shard_of(plan, 1).with_name(".part-00002.tar.there-1-cd.part").write_bytes(b"half")
    assert 1 in unfinished(plan)
    assert finished(plan) == undisturbed


@pytest.mark.parametrize("change", ["a row twice", "a row lost", "another image's rows", "a name outside"])
def test_a_sidecar_of_other_rows_is_made_anew(change: str, plan: Plan, undisturbed: dict[str, bytes]) -> None:
    in_this_process(Maker(Echo(), 1))(plan, unfinished(plan), quiet)
    rows = read_table(plan.sidecar(2))
    if change == "a row twice":
        rows = {name: column[[0, 0, 2, 3]] for name, column in rows.items()}
    elif change == "a row lost":
        rows = {name: column[:-1] for name, column in rows.items()}
    elif change == "another image's rows":
        rows = read_table(plan.sidecar(3))
    else:
        rows["shard"][:] = "../analysis/part-00000.parquet"
    write_table(plan.sidecar(2), rows)
    assert merge(plan, quiet) == [2]
    assert finished(plan) == undisturbed


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


def test_an_input_that_vanishes_and_comes_back(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    part = plan.folder.parent / "analysis" / "part-00003.parquet"
    data = part.read_bytes()
    part.unlink()
    with pytest.raises(UserError, match=r"part-00003.parquet is gone, .*run `genview analyse`"):
        finish(plan, in_this_process(Maker(Echo(), 1)), quiet)
    part.write_bytes(data)
    assert finished(plan) == undisturbed


def test_an_input_that_comes_back_as_another_is_refused(plan: Plan) -> None:
    part = plan.folder.parent / "analysis" / "part-00003.parquet"
    rows = read_table(part)
    write_table(part, {**rows, "key": rows["key"][::-1]})
    with pytest.raises(UserError, match="holds other images than when the views"):
        finish(plan, in_this_process(Maker(Echo(), 1)), quiet)


def test_a_plan_that_is_damaged_is_written_once_more(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 0, Maker(Echo(), 1))
    cut(plan.folder / "plan" / "part-00000.parquet")
    with pytest.raises(UserError, match=r"Delete .*plan.json and run"):
        finished(plan)
    (plan.folder / "plan" / "plan.json").unlink()
    assert finished(planned(plan.folder, SETTINGS)) == undisturbed


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


def test_a_disk_that_loses_what_is_written_is_named(plan: Plan) -> None:
    def launch(plan: Plan, shards: list[int], tell: Tell) -> None:
        in_this_process(Maker(Echo(), 1))(plan, shards, tell)
        cut(shard_of(plan, 0))

    with pytest.raises(UserError, match=r"1 shards in .* were damaged each of the 3 times"):
        finish(plan, launch, quiet)
