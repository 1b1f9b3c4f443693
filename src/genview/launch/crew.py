"""The rule by which workers get shards, fail, and are replaced; the same for processes and for actors of Ray."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar

from genview.errors import UserError
from genview.launch.lease import PATIENCE, Leases
from genview.launch.work import ATTEMPTS, Tally, Work, name_of, record

Told = tuple[Literal["ready", "done", "failed", "stop"], str]
"""A worker is ready for its first shard, has done one, failed (a traceback), or met what the user can mend."""


class Doer:
    """A worker's own side: it keeps what was prepared, and puts errors into words that any pipe carries."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._do: Callable[[int], None] | None = None

    def prepare(self, device: str) -> Told:
        """Load models."""

        def act() -> None:
            self._do = self._work.prepare(device)

        return _told("ready", act)

    def do(self, shard: int) -> Told:
        """Do a shard."""
        assert self._do is not None, "not prepared"
        return _told("done", partial(self._do, shard))


def _told(what: Literal["ready", "done"], act: Callable[[], None]) -> Told:
    try:
        act()
    except UserError as error:
        return "stop", str(error)
    except Exception:
        return "failed", traceback.format_exc()
    return what, ""


W = TypeVar("W")


class Host(Protocol[W]):
    """Where workers W run."""

    def places(self) -> Sequence[str]:
        """Return the device of each worker that there may be now."""
        ...

    def start(self, work: Work, device: str) -> W:
        """Start a worker, which prepares the work and then says that it is ready."""
        ...

    def give(self, worker: W, shard: int) -> None:
        """Let a worker do a shard; if it is dead, `listen` says so."""
        ...

    def listen(self, workers: Sequence[W]) -> Sequence[tuple[W, Told]]:
        """Wait for a second at most; return what workers said. For one that died, say that it failed."""
        ...

    def end(self, workers: Sequence[W], abrupt: bool) -> None:
        """End workers, at once or when they have noticed."""
        ...


@dataclass
class _Seat(Generic[W]):
    worker: W
    device: str
    ready: bool = False
    shard: int | None = None


class Crew(Generic[W]):
    """Workers of a host, which do the shards of a tally.

    A worker that failed is replaced by a fresh one: after an error on a GPU, all later calls of its process fail.
    What other processes are at, whoever started them, is left to them.
    """

    def __init__(self, host: Host[W], work: Work, tally: Tally, patience: float = PATIENCE) -> None:
        self._host, self._work, self._tally = host, work, tally
        self._leases, self._held = Leases(work.folder / "leases", patience), dict[int, ExitStack]()
        self._seats: list[_Seat[W]] = []
        self._false_starts: Counter[str] = Counter()
        self._reason = self._stop = ""

    def run(self) -> None:
        """Do all shards.

        Raises:
            UserError: a worker met one, none could start, or shards were given up.
        """
        abrupt = True
        try:
            while self._staffed():
                self._listen()
            abrupt = False
        finally:
            self._host.end([seat.worker for seat in self._seats], abrupt)
            for shard in list(self._held):
                self._release(shard)
        if self._stop:
            raise UserError(self._stop)
        self._tally.conclude()

    def _staffed(self) -> bool:
        """Start workers where shards wait for them; return whether there is anything to wait for."""
        busy = sum(seat.shard is not None for seat in self._seats)
        if self._stop or not self._tally:
            return busy > 0
        fit = [place for place in self._host.places() if self._false_starts[place] < ATTEMPTS]
        vacant = Counter(fit) - Counter(seat.device for seat in self._seats)
        for device in list(vacant.elements())[: len(self._tally) - (len(self._seats) - busy)]:
            self._seats.append(_Seat(self._host.start(self._work, device), device))
        if self._seats or not self._reason:
            return True
        self._stop = (
            f"No worker could start: {self._reason}. The tracebacks are in {self._work.folder / 'failures'}. "
            "What was finished before is kept: mend the cause and run the same command again."
        )
        return False

    def _listen(self) -> None:
        seats = {id(seat.worker): seat for seat in self._seats}
        for worker, told in self._host.listen([seat.worker for seat in self._seats]):
            self._act(seats[id(worker)], *told)
        for seat in self._seats:
            if seat.ready and seat.shard is None and not self._stop:
                seat.shard = self._tally.take(self._leased)
                if seat.shard is not None:
                    self._host.give(seat.worker, seat.shard)

    def _leased(self, shard: int) -> bool:
        """Take the lease of a shard, unless another process is at it or has just finished it."""
        lease = ExitStack()
        if lease.enter_context(self._leases.held(name_of(shard))) and not self._work.finished(shard):
            self._held[shard] = lease
            return True
        lease.close()
        return False

    def _release(self, shard: int) -> None:
        self._held.pop(shard).close()

    def _act(self, seat: _Seat[W], what: str, text: str) -> None:
        if what == "ready":
            seat.ready = True
            del self._false_starts[seat.device]
        elif what == "done" and seat.shard is not None:
            self._tally.done(seat.shard)
            self._release(seat.shard)
            seat.shard = None
        else:
            self._seats.remove(seat)
            self._host.end([seat.worker], abrupt=False)
            self._failed(seat, what, text)

    def _failed(self, seat: _Seat[W], what: str, text: str) -> None:
        if seat.shard is not None:
            self._release(seat.shard)
        if what == "stop":
            self._stop = self._stop or text
        elif seat.shard is not None:
            self._tally.failed(seat.shard, text)
        elif not seat.ready:
            self._reason = record(self._work.folder, "start", text)
            self._false_starts[seat.device] += 1
