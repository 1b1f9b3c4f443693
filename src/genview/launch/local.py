"""Processes of this machine do the shards: one for each GPU, or several on the CPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Literal

from genview.launch.crew import Crew, Doer, Told
from genview.launch.work import Tally, Tell, Work

GRACE = 5.0
"""Seconds in which a worker that is no longer needed may end by itself."""


@dataclass(frozen=True)
class Local:
    """`processes` on `devices`, in turn; 0 takes one for each device.

    Without `devices` they are all GPUs, or else the CPU once for each core; the processes share out the cores.
    """

    processes: int = 0
    devices: tuple[str, ...] = ()
    kind: Literal["local"] = "local"

    def run(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        """Hand out the shards one at a time; a worker that dies or raises loses no more than its own."""
        Crew(_Machine(self.places()), work, Tally(work, shards, tell)).run()

    def places(self) -> list[str]:
        """Return the device of each process."""
        devices = self.devices or _devices()
        return list(islice(cycle(devices), self.processes or len(devices)))


def _devices() -> tuple[str, ...]:
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cpu",) * _cores()


def _cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Process:
    process: SpawnProcess
    pipe: Connection


class _Machine:
    """The machine as a host of worker processes."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places

    def places(self) -> Sequence[str]:
        return self._places

    def start(self, work: Work, device: str) -> _Process:
        """Start a fresh interpreter: CUDA does not survive a fork, and neither do threads."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        threads = max(1, _cores() // len(self._places))
        process = context.Process(target=_serve, args=(theirs, work, device, threads), name=f"genview on {device}")
        with _interrupts_held():
            process.start()
        theirs.close()
        return _Process(process, mine)

    def give(self, worker: _Process, shard: int) -> None:
        with contextlib.suppress(OSError):
            worker.pipe.send(shard)

    def listen(self, workers: Sequence[_Process]) -> list[tuple[_Process, Told]]:
        speaking = wait([worker.pipe for worker in workers], timeout=1.0)
        # A process that a worker had started may hold the pipe open when the worker is dead.
        heard = [w for w in workers if w.pipe in speaking or not w.process.is_alive()]
        return [(worker, _said(worker)) for worker in heard]

    def end(self, workers: Sequence[_Process], abrupt: bool) -> None:
        for worker in workers:
            worker.pipe.close()
        deadline = time.monotonic() + (0.0 if abrupt else GRACE)
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in workers:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; children that inherit this leave it to their parent to end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _said(worker: _Process) -> Told:
    try:
        if worker.pipe.poll():
            told: Told = worker.pipe.recv()
            return told
    except (EOFError, OSError):
        pass
    worker.process.join(GRACE)
    return "failed", f"The worker process {_death(worker.process.exitcode)}"


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended without a word (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (" (perhaps the memory was full)" if name == "SIGKILL" else "")


def _serve(pipe: Connection, work: Work, device: str, threads: int) -> None:
    """Do shards until the parent closes the pipe, one fails, or the parent is gone."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    doer = Doer(work)
    try:
        told = doer.prepare(device)
        while told[0] in ("ready", "done"):
            pipe.send(told)
            told = doer.do(pipe.recv())
        pipe.send(told)
    except (EOFError, ConnectionError):  # the parent closed the pipe
        return
    except KeyboardInterrupt:  # a training that heard SIGTERM has saved what it had
        sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns however the parent ended, by kill -9 too
    os._exit(1)
