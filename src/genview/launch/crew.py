"""Worker processes, one shard each at a time; one that is lost is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Literal, Self

from genview.errors import UserError
from genview.launch.work import ATTEMPTS, Tally, Work, record

Told = tuple[Literal["ready", "done", "failed", "stop"], str]
"""A worker is ready for its first shard, has done one, failed (a traceback), or met what the user can mend."""

GRACE = 5.0
"""Seconds in which a worker that is no longer needed may end by itself."""


@dataclass
class Worker:
    """A process, the way to it, its device, and the shard that it has."""

    process: SpawnProcess
    pipe: Connection
    device: str
    ready: bool = False
    shard: int | None = None


class Crew:
    """Workers on `devices`, which do the shards of `tally`; the parent of all, and the only one that counts.

    A worker that raised is not used again: after an error on a GPU, every later call in its process fails too.
    """

    def __init__(self, work: Work, tally: Tally, devices: Sequence[str], threads: int) -> None:
        self._work, self._tally, self._threads = work, tally, threads
        self._vacant = list(devices)
        self._workers: list[Worker] = []
        self._false_starts: Counter[str] = Counter()
        self._stop = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if error is not None or not worker.ready:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + GRACE
        for worker in self._workers:
            _end(worker, deadline)

    def staffed(self) -> bool:
        """Start workers where there are shards for them; return whether there is anything left to wait for."""
        busy = sum(worker.shard is not None for worker in self._workers)
        if self._stop or not self._tally:
            return busy > 0
        while self._vacant and len(self._workers) - busy < len(self._tally):
            self._workers.append(_start(self._work, self._vacant.pop(0), self._threads))
        return bool(self._workers)

    def listen(self) -> None:
        """Wait for a worker to say something or to die, and act on it."""
        speaking = wait([worker.pipe for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            if worker.pipe in speaking or not worker.process.is_alive():
                self._act(worker, *_said(worker))
        for worker in self._workers:
            if worker.ready and worker.shard is None and not self._stop:
                self._give(worker)

    def conclude(self) -> None:
        """Raise what ended the work early, or was given up."""
        if self._stop:
            raise UserError(self._stop)
        self._tally.conclude()

    def _act(self, worker: Worker, what: str, text: str) -> None:
        if what == "ready":
            worker.ready = True
            del self._false_starts[worker.device]
        elif what == "done" and worker.shard is not None:
            self._tally.done(worker.shard)
            worker.shard = None
        else:
            self._dismiss(worker)
            if what == "stop":
                self._stop = self._stop or text
            elif worker.shard is not None:
                self._tally.failed(worker.shard, text)
            elif not worker.ready:
                self._false_start(worker.device, text)

    def _give(self, worker: Worker) -> None:
        worker.shard = self._tally.take()
        if worker.shard is not None:
            with contextlib.suppress(OSError):  # it died meanwhile, which `listen` sees
                worker.pipe.send(worker.shard)

    def _dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._vacant.append(worker.device)
        worker.pipe.close()
        _end(worker, time.monotonic() + GRACE)

    def _false_start(self, device: str, text: str) -> None:
        """Use a device no more on which workers cannot start; without any device, stop."""
        reason = record(self._work.folder, "start", text)
        self._false_starts[device] += 1
        if self._false_starts[device] >= ATTEMPTS:
            self._vacant = [other for other in self._vacant if other != device]
            if not self._vacant and not self._workers:
                self._stop = (
                    f"No worker could start: {reason}. The tracebacks are in {self._work.folder / 'failures'}. "
                    "What was finished before is kept: mend the cause and run the same command again."
                )


def _start(work: Work, device: str, threads: int) -> Worker:
    """Start a fresh interpreter: CUDA does not survive a fork, and neither do threads."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, device, threads), name=f"genview on {device}")
    with _interrupts_held():
        process.start()
    theirs.close()
    return Worker(process, mine, device)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; children that inherit this leave it to their parent to end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, work: Work, device: str, threads: int) -> None:
    """Do shards until the parent closes the pipe, the first one fails, or the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        do = work.prepare(device)
        pipe.send(("ready", ""))
        while True:
            try:
                shard = pipe.recv()
            except (EOFError, ConnectionError):
                return
            do(shard)
            pipe.send(("done", ""))
    except UserError as error:
        pipe.send(("stop", str(error)))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns however the parent ended, by kill -9 too
    os._exit(1)


def _said(worker: Worker) -> Told:
    try:
        if worker.pipe.poll():
            told: Told = worker.pipe.recv()
            return told
    except (EOFError, OSError):
        pass
    worker.process.join(GRACE)
    return "failed", f"The worker on {worker.device} {_death(worker.process.exitcode)}"


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended without a word (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (": perhaps the memory was full" if name == "SIGKILL" else "")


def _end(worker: Worker, deadline: float) -> None:
    worker.process.join(max(0.0, deadline - time.monotonic()))
    if worker.process.is_alive():
        worker.process.terminate()
        worker.process.join(GRACE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.process.close()
