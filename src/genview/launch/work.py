"""What there is to do, and the rule for shards that fail, which every launcher keeps."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from genview.errors import UserError
from genview.store import write_bytes

Tell = Callable[[int, int, str], None]

ATTEMPTS = 3
"""How often a shard is tried before it is given up, and how often workers may fail to start, one after another."""


class Work(Protocol):
    """A stage's shards. It is pickled to the workers, so it holds settings and paths, no models and no open files.

    Doing a shard must be idempotent and its result appear by rename: two workers may do the same one.
    """

    @property
    def folder(self) -> Path:
        """Where launchers keep leases and the tracebacks of shards that failed; every worker sees it."""
        ...

    def prepare(self, device: str) -> Callable[[int], None]:
        """Load models to `device`, once a worker, and return the function that does a shard."""
        ...

    def finished(self, shard: int) -> bool:
        """Whether the shard's files are there."""
        ...


class Tally:
    """The shards of a launch: which wait, which are done, and which failed how often."""

    def __init__(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        self._work, self._shards, self._tell = work, shards, tell
        self._done = {shard for shard in shards if work.finished(shard)}
        self._waiting = deque(shard for shard in shards if shard not in self._done)
        self._failures: Counter[int] = Counter()
        self._lost: set[int] = set()
        self._reason = ""
        self._say()

    def __len__(self) -> int:
        """Return how many shards wait for a worker."""
        return len(self._waiting)

    def take(self, may: Callable[[int], bool] = lambda _: True) -> int | None:
        """Return the next shard to do, or None where none waits that `may` be done now."""
        for _ in range(len(self._waiting)):
            shard = self._waiting.popleft()
            if self._work.finished(shard):
                self.done(shard)
            elif may(shard):
                return shard
            else:
                self._waiting.append(shard)
        return None

    def done(self, shard: int) -> None:
        """Count a shard as done."""
        self._done.add(shard)
        self._say()

    def failed(self, shard: int, trace: str) -> None:
        """Let a shard wait for another worker, or give it up; its files may be there all the same."""
        if self._work.finished(shard):
            self.done(shard)
            return
        self._reason = record(self._work.folder, name_of(shard), trace)
        self._failures[shard] += 1
        if self._failures[shard] < ATTEMPTS:
            self._waiting.append(shard)
        else:
            self._lost.add(shard)
        self._say()

    def conclude(self) -> None:
        """Raise UserError if a shard was given up."""
        if self._lost:
            raise given_up(self._lost, self._reason, self._work.folder)

    def _say(self) -> None:
        failures = self._failures.total()
        note = f"{failures} attempt{'s' if failures != 1 else ''} failed" if failures else ""
        self._tell(len(self._done), len(self._shards), note)


def record(folder: Path, what: str, trace: str) -> str:
    """Keep why an attempt failed in a file of its own; return the last line of it."""
    path = folder / "failures" / f"{what}-{secrets.token_hex(4)}.txt"
    write_bytes(path, (trace.rstrip() + "\n").encode(errors="backslashreplace"))
    return trace.rstrip().splitlines()[-1]


def recorded(folder: Path) -> Counter[str]:
    """Count the attempts that `record` kept, by what they were at, of this launch and of earlier ones."""
    return Counter(path.name.rpartition("-")[0] for path in (folder / "failures").glob("*.txt"))


def given_up(lost: Iterable[int], reason: str, folder: Path) -> UserError:
    """Return the error that names the shards that were given up and says why the last one was."""
    names = sorted(lost)
    some = ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
    return UserError(
        f"{len(names)} shard{'s' if len(names) != 1 else ''} failed {ATTEMPTS} times and were given up ({some}). "
        f"The last reason: {reason}. The tracebacks are in {folder / 'failures'}. All other shards are done; "
        "when the cause is mended, run the same command again."
    )


def name_of(shard: int) -> str:
    """Return the name of a shard in file names."""
    return f"shard-{shard:05d}"
