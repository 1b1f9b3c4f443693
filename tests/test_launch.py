"""Every launcher finishes all shards, whatever happens to its workers; and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from genview.errors import UserError
from genview.launch import Here, Indexed, Launcher, Local, launch
from genview.launch.lease import Leases
from genview.store import write_bytes
from marks import Marks, alive, silent, wait_for


@pytest.mark.parametrize("launcher", [Here(), Local(2, ("cpu",)), Indexed(1, 2, patience=0.4)])
def test_all_shards_are_done_and_finished_ones_are_not_done_again(launcher: Launcher, tmp_path: Path) -> None:
    work = Marks(tmp_path)
    write_bytes(tmp_path / "2.done", b"")
    told: list[tuple[int, int]] = []
    launch(launcher, work, range(6), lambda done, total, _: told.append((done, total)))
    assert work.all_done(6) == list(range(6))
    assert not work.attempts(2)
    assert all(len(work.attempts(shard)) == 1 for shard in (0, 1, 3, 4, 5))
    assert told[-1] == (6, 6)
    assert told == sorted(told)
    before = len(work.lines())
    launch(launcher, work, range(6), silent)
    assert len(work.lines()) == before, "no model is loaded for nothing"


def test_a_shard_goes_to_another_worker_when_its_own_dies_or_raises(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = Marks(tmp_path, {1: "die", 3: "raise", 5: "stop"})
    notes: list[str] = []
    launch(Local(2, ("cpu",)), work, range(6), lambda *told: notes.append(told[2]))
    assert work.all_done(6) == list(range(6))
    for shard in (1, 3, 5):
        first, second = work.attempts(shard)
        assert first != second
    assert "3 attempts failed" in notes
    assert "KeyboardInterrupt" not in capfd.readouterr().err
    kept = {path.name[:11]: path.read_text() for path in (tmp_path / "failures").iterdir()}
    assert "SIGKILL" in kept["shard-00001"]
    assert "ValueError: made so" in kept["shard-00003"]
    assert "exit code 143" in kept["shard-00005"]


@pytest.mark.parametrize("launcher", [Local(1, ("cpu",)), Indexed(0, 1, patience=0.2)])
def test_a_shard_that_always_fails_is_named_and_the_others_are_done(launcher: Launcher, tmp_path: Path) -> None:
    work = Marks(tmp_path, {1: "raise always"})
    with pytest.raises(UserError, match=r"1 shard failed 3 times.*\(1\).*ValueError: made so.*failures"):
        launch(launcher, work, range(4), silent)
    assert work.all_done(4) == [0, 2, 3]
    assert len(work.attempts(1)) == 3


def test_attempts_of_an_earlier_launch_do_not_count(tmp_path: Path) -> None:
    work = Marks(tmp_path, {0: "raise always"})
    for times in (3, 6):
        with pytest.raises(UserError, match="failed 3 times"):
            launch(Indexed(0, 1, patience=0.2), work, range(1), silent)
        assert len(work.attempts(0)) == times


@pytest.mark.parametrize("launcher", [Here(), Local(2, ("cpu",)), Indexed(0, 1)])
def test_what_the_user_can_mend_stops_the_launch(launcher: Launcher, tmp_path: Path) -> None:
    work = Marks(tmp_path, {1: "user always"}, seconds=0.2)
    with pytest.raises(UserError, match=r"^the disk is full: free some space$"):
        launch(launcher, work, range(60), silent)
    assert len(work.attempts(1)) == 1
    assert not work.finished(59)
    tried = {int(what) for kind, what, _ in work.lines() if kind == "shard"}
    assert set(work.all_done(60)) == tried - {1}, "the others finish their shard"
    assert not list(tmp_path.glob("leases/*"))


def test_workers_that_cannot_start_end_the_launch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No worker could start: ValueError: made so"):
        launch(Local(1, ("cpu",)), Marks(tmp_path, start="raise"), range(4), silent)
    with pytest.raises(UserError, match=r"^the disk is full"):
        launch(Local(1, ("cpu",)), Marks(tmp_path, start="user"), range(4), silent)


def test_an_error_here_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made so"):
        launch(Here(), Marks(tmp_path, {1: "raise"}), range(3), silent)


def test_processes_are_spread_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Local(3, ("cuda:0", "cuda:1")).places() == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Local().places() == ["cuda:0", "cuda:1"]
    assert Indexed(5, 8, local=3).device() == "cuda:1"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert set(Local(3).places()) == {"cpu"}
    assert len(Local(3).places()) == 3
    assert Indexed(5, 8, local=3).device() == "cpu"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from genview.launch import Indexed, Local, launch
from marks import Marks, silent
if __name__ == "__main__":
    launch({launcher}, Marks(Path({folder!r}), {trouble}, seconds={seconds}), range({count}), silent)
"""


@dataclass(frozen=True)
class Program:
    """A program of its own that launches."""

    folder: Path

    def begin(self, launcher: str, *, count: int, seconds: float, trouble: str = "{}") -> subprocess.Popen[bytes]:
        script = self.folder / "program.py"
        tests, folder = str(Path(__file__).parent), str(self.folder)
        script.write_text(SCRIPT.format(**locals()))
        return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    yield Program(tmp_path)
    for pid in {int(pid) for _, _, pid in Marks(tmp_path).lines()} - {os.getpid()}:
        assert not alive(pid), "a worker outlived its parent"


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(kind: signal.Signals, program: Program) -> None:
    parent = program.begin("Local(1, ('cpu',))", count=1000, seconds=0.2)
    work = Marks(program.folder)
    wait_for(lambda: any(kind == "shard" for kind, _, _ in work.lines()))
    workers = {int(pid) for _, _, pid in work.lines()}
    assert all(map(alive, workers))
    parent.send_signal(kind)
    _, words = parent.communicate(timeout=300)
    wait_for(lambda: not any(map(alive, workers)), 60)
    assert b"SpawnProcess" not in words, "workers are silent"
    assert not work.finished(999)


def test_one_of_an_array_does_what_a_killed_one_left(program: Program) -> None:
    work = Marks(program.folder)
    other = program.begin("Indexed(1, 2, patience=1.0)", count=8, seconds=3.0)
    wait_for(lambda: any(work.lines()))
    other.kill()
    other.communicate()
    assert (held := list((program.folder / "leases").iterdir()))
    assert not work.all_done(8)
    launch(Indexed(0, 2, patience=0.4), work, range(8), silent)
    assert work.all_done(8) == list(range(8))
    assert not any(path.exists() for path in held)
    (kept,) = (program.folder / "failures").iterdir()
    assert kept.name.startswith(held[0].stem)
    assert "died at it" in kept.read_text()
    assert sum(len(work.attempts(shard)) for shard in range(8)) == 9, "one was begun twice, none three times"


def test_processes_leave_to_others_what_they_are_at(tmp_path: Path) -> None:
    """A second command in the same folder, whatever its launcher is, joins the first."""
    work, leases = Marks(tmp_path), Leases(tmp_path / "leases", 60.0)
    with leases.held("shard-00001") as held:
        assert held
        joining = threading.Thread(target=launch, args=(Local(1, ("cpu",)), work, range(3), silent))
        joining.start()
        wait_for(lambda: work.all_done(3) == [0, 2])
        time.sleep(1.5)  # it looks for what is free every second
        assert not work.attempts(1)
        write_bytes(tmp_path / "1.done", b"")
    joining.join()
    assert not work.attempts(1)
    assert not list((tmp_path / "leases").iterdir())


def test_while_a_worker_is_at_a_shard_it_is_leased(program: Program) -> None:
    other, work = program.begin("Local(1, ('cpu',))", count=2, seconds=2.0), Marks(program.folder)
    wait_for(lambda: any(kind == "shard" for kind, _, _ in work.lines()))
    assert [path.stem for path in (program.folder / "leases").iterdir()] == ["shard-00000"]
    launch(Indexed(0, 1, patience=60.0), work, range(2), silent)
    other.communicate()
    assert other.returncode == 0
    assert [len(work.attempts(shard)) for shard in range(2)] == [1, 1]


def test_an_array_at_once_does_no_shard_twice(tmp_path: Path) -> None:
    work = Marks(tmp_path, seconds=0.05)
    members = [
        threading.Thread(target=launch, args=(Indexed(n, 3, patience=30.0), work, range(10), silent))
        for n in range(2)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join()
    assert [len(work.attempts(shard)) for shard in range(10)] == [1] * 10, "those of the absent third are done too"


def test_a_shard_that_kills_every_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, taken, others = Marks(tmp_path), Leases._taken, iter(range(100))

    def another_is_faster(leases: Leases, path: Path) -> int | None:
        file = taken(leases, path)
        if file is not None and path.stem == "shard-00001":
            os.close(file)
            path.write_text(f"process {next(others)}, dead at once")
            return None
        return file

    monkeypatch.setattr(Leases, "_taken", another_is_faster)
    with pytest.raises(UserError, match=r"\(1\).*A process died at it"):
        launch(Indexed(0, 4, patience=0.2), work, range(3), silent)
    assert work.all_done(3) == [0, 2]
    assert len(list((tmp_path / "failures").iterdir())) == 3


def test_own_shards_come_first_and_others_from_their_end() -> None:
    assert Indexed(1, 3).order(range(8)) == [1, 4, 7, 5, 2, 6, 3, 0]
    assert Indexed(7, 3).order([4]) == [4]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}, (2, 4, 0)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (3, 4, 0),
        ),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, (3, 8, 1)),
        ({"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2"}, (5, 6, 2)),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
            | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"},
            (5, 8, 5),
        ),
    ],
    ids=["array", "array with step", "srun", "torchrun", "torchrun in a batch script"],
)
def test_an_index_is_read_from_the_environment(environment: dict[str, str], expected: tuple[int, int, int]) -> None:
    found = Indexed.from_environment(environment)
    assert (found.index, found.count, found.local) == expected


def test_an_environment_without_an_index_is_refused() -> None:
    for environment, message in (
        ({}, "neither a SLURM array, srun nor torchrun"),
        ({"RANK": "1"}, "neither"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE should be numbers"),
    ):
        with pytest.raises(UserError, match=message):
            Indexed.from_environment(environment)
