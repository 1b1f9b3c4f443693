"""Leases: files that say who is at work on a shard, for machines that share nothing but a folder.

No clock is compared with another machine's: a lease is dead when its content has stood still while the watcher's own
monotonic clock went on for long enough. Where watcher and worker share a machine, one whose process is gone is dead
at once. A lease is courtesy, not a lock: two workers on one shard do no harm, so the rare races are allowed to end
that way.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from genview.errors import UserError, writing

PATIENCE = 120.0
"""Seconds for which a lease may stand still before it counts as dead."""
BEATS = 8
"""How often a lease is renewed in the time after which it counts as dead."""


class Leases:
    """The leases in `folder`, as one worker sees them; `patience` in seconds. `died` is told names of dead ones."""

    def __init__(self, folder: Path, patience: float, died: Callable[[str], None] = lambda _: None) -> None:
        self._folder, self._patience, self._died = folder, patience, died
        self._seen: dict[str, tuple[bytes | None, float]] = {}

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold the lease `name` and renew it from a thread; yields False where another worker holds it."""
        path = self._folder / f"{name}.lease"
        file = self._taken(path)
        if file is None:
            yield False
            return
        nonce = secrets.token_hex(8).encode()
        ended = threading.Event()
        mark = nonce + b" " + owner(os.getpid())
        beats = threading.Thread(target=_beat, args=(file, mark, self._patience / BEATS, ended), daemon=True)
        beats.start()
        try:
            yield True
        finally:
            ended.set()
            beats.join()
            os.close(file)
            if (_content(path) or b"").startswith(nonce):
                path.unlink(missing_ok=True)

    def _taken(self, path: Path) -> int | None:
        """Create the lease, after removing a dead one; None where it is alive."""
        if self._dead(path):
            with suppress(FileNotFoundError):  # another was faster
                path.unlink()
                self._died(path.stem)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return None

    def _dead(self, path: Path) -> bool:
        now, content = time.monotonic(), _content(path)
        if content is not None and _gone(content):
            return True
        before, since = self._seen.get(path.name, (None, now))
        if content is None or content != before:
            self._seen[path.name] = content, now
            return False
        return now - since > self._patience


@contextmanager
def alone(folder: Path, what: str, say: Callable[[str], object], patience: float = PATIENCE) -> Iterator[None]:
    """Do what only one process at a time may do in a folder; where another began it, wait until it is surely dead.

    Raises:
        UserError: another process is at it.
    """
    leases, seen = Leases(folder, patience), set[bytes | None]()
    while True:
        with leases.held(what) as mine:
            if mine:
                yield
                return
        seen.add(_content(folder / f"{what}.lease"))
        if len(seen - {None}) > 1:  # it beats
            raise UserError(
                f"Another process is at the {what} in {folder}. Let it finish, stop it, or choose another --out."
            )
        say(f"waiting, as another process may be at it; at most {patience:.0f} s")
        time.sleep(patience / BEATS / 4)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def owner(process: int) -> bytes:
    """Name a process of this machine: the boot, the namespace that its number belongs to, and the number."""
    return f"{_home()}/{process}".encode()


@cache
def _home() -> str:
    """Name what a process number means something in; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _gone(content: bytes) -> bool:
    """Whether a lease names a process of this machine that is no more."""
    home, _, number = b"".join(content.split(b" ")[1:2]).rpartition(b"/")
    if not home or home != _home().encode() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _beat(file: int, mark: bytes, every: float, ended: threading.Event) -> None:
    """Write the worker's mark and a counter into the open file.

    Into the file, not to its name: if this worker was taken for dead, the name is another's lease by now.
    """
    count = 0
    with suppress(OSError):  # the file is gone, or its disk full: then others may take the shard too
        while True:
            os.pwrite(file, mark + b" %d\n" % count, 0)
            os.fsync(file)
            count += 1
            if ended.wait(every):
                return
