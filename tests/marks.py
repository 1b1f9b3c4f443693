"""Work for the tests of launchers: shards that leave marks, and what may happen at one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from genview.errors import UserError
from genview.store import write_bytes

Trouble = dict[int, str]


@dataclass(frozen=True)
class Marks:
    """A file per shard, and a line in `log` per attempt; `trouble` names what happens at a shard, once or always."""

    folder: Path
    trouble: Trouble = field(default_factory=dict)
    start: str = ""
    seconds: float = 0.0

    def prepare(self, device: str) -> Callable[[int], None]:
        self.note(f"start {device}")
        if self.start:
            happen(self.start)

        def do(shard: int) -> None:
            before = self.attempts(shard)
            self.note(f"shard {shard}")
            time.sleep(self.seconds)
            kind, _, times = self.trouble.get(shard, "").partition(" ")
            if kind and (times == "always" or not before):
                happen(kind)
            write_bytes(self.folder / f"{shard}.done", b"")

        return do

    def finished(self, shard: int) -> bool:
        return (self.folder / f"{shard}.done").exists()

    def note(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(f"{line} {os.getpid()}\n")

    def lines(self) -> list[list[str]]:
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def attempts(self, shard: int) -> list[str]:
        """Processes that tried a shard."""
        return [pid for kind, what, pid in self.lines() if (kind, what) == ("shard", str(shard))]

    def all_done(self, count: int) -> list[int]:
        return [shard for shard in range(count) if self.finished(shard)]


def happen(kind: str) -> None:
    if kind == "raise":
        raise ValueError("made so")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":  # as a training does that hears SIGTERM
        raise KeyboardInterrupt
    if kind == "user":
        raise UserError("the disk is full: free some space")


def silent(*_: object) -> None:
    pass


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
