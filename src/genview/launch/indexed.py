"""One process of many that SLURM or torchrun started. They share a folder, and nothing else."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from genview.errors import UserError
from genview.launch.lease import BEATS, PATIENCE, Leases
from genview.launch.work import ATTEMPTS, Tell, Work, given_up, name_of, record, recorded

PLACES = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("RANK", "WORLD_SIZE"),
)
"""Where SLURM (arrays, srun) and torchrun say which process this is, and of how many."""


@dataclass(frozen=True)
class Indexed:
    """Process `index` of `count`, and the `local`-th of its machine, which decides its GPU.

    It does the shards i ≡ index (mod count) first and then helps with what the others have not finished, so the
    shards of one that died are done too. One whose lease has stood still for `patience` seconds counts as dead.
    """

    index: int
    count: int
    local: int = 0
    patience: float = PATIENCE
    kind: Literal["indexed"] = "indexed"

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> Indexed:
        """Return what SLURM or torchrun say about this process.

        Raises:
            UserError: none of them started it, or their variables are no numbers.
        """
        found = [pair for pair in PLACES if all(name in environment for name in pair)]
        if not found:
            raise UserError(
                "This process was started by neither a SLURM array, srun nor torchrun: there is no "
                f"{', '.join(f'{index} with {count}' for index, count in PLACES)} in the environment. Start it with "
                "one of them, or choose another launcher."
            )
        try:
            # A batch script that calls torchrun is also task 0 of 1 to SLURM: what says that there are several holds.
            index, count = next((pair for pair in found if int(environment[pair[1]]) > 1), found[0])
            array = environment if index == "SLURM_ARRAY_TASK_ID" else {}
            first, step = int(array.get("SLURM_ARRAY_TASK_MIN", 0)), int(array.get("SLURM_ARRAY_TASK_STEP", 1))
            local = int(environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", 0)))
            return Indexed((int(environment[index]) - first) // max(1, step), int(environment[count]), local)
        except ValueError as error:
            raise UserError(
                f"The variables {', '.join(map(' and '.join, found))} should be numbers: {error}."
            ) from error

    def run(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        """Do shards until all are finished, whoever finished them; progress is what this process has seen of it."""
        member = _Member(work, len(shards), self, tell)
        left = self.order(shards)
        while left:
            still = [shard for shard in left if not member.settled(shard)]
            if len(still) == len(left):
                time.sleep(self.patience / BEATS)
            left = still
        if member.lost:
            raise given_up(member.lost, member.reason, work.folder)

    def order(self, shards: Sequence[int]) -> list[int]:
        """Return the own shards, then those of the next process and so on, each from the end that it does last."""
        own, *others = ([*shards[(self.index + n) % self.count :: self.count]] for n in range(self.count))
        return own + [shard for other in others for shard in reversed(other)]

    def device(self) -> str:
        """Return the GPU of this process, or the CPU."""
        import torch

        gpus = torch.cuda.device_count()
        return f"cuda:{self.local % gpus}" if gpus else "cpu"


class _Member:
    """What this process has done and seen."""

    def __init__(self, work: Work, total: int, place: Indexed, tell: Tell) -> None:
        self._work, self._total, self._place, self._tell = work, total, place, tell
        self._leases = Leases(work.folder / "leases", place.patience, self._died)
        self._earlier = recorded(work.folder)
        self._do: Callable[[int], None] | None = None
        self._seen = 0
        self._failing: set[int] = set()
        self.lost: set[int] = set()
        self.reason = "another process met it"

    def settled(self, shard: int) -> bool:
        """Do a shard, unless another process is at it; return whether nothing is left to do about it."""
        if not self._work.finished(shard):
            if self._given_up(shard):
                self.lost.add(shard)
                return True
            with self._leases.held(name_of(shard)) as held:
                # It may have been finished between the look and the lease.
                if not held or not (self._work.finished(shard) or self._done(shard)):
                    return False
        self._seen += 1
        self._tell(self._seen, self._total, "")
        return True

    def _given_up(self, shard: int) -> bool:
        """Whether all processes together have failed at it often enough since this one began."""
        name = name_of(shard)
        return recorded(self._work.folder)[name] - self._earlier[name] >= ATTEMPTS

    def _done(self, shard: int) -> bool:
        try:
            if self._do is None:
                self._do = self._work.prepare(self._place.device())
            self._do(shard)
        except UserError:
            raise
        except Exception as error:
            self._failed(shard, error)
            return False
        self._failing.clear()
        return True

    def _died(self, name: str) -> None:
        """Count as an attempt what killed its process: it might kill them all, one after another."""
        self.reason = record(
            self._work.folder, name, f"A process died at it or stood still: {self._place.patience:g} s"
        )

    def _failed(self, shard: int, error: Exception) -> None:
        self.reason = record(self._work.folder, name_of(shard), traceback.format_exc())
        self._failing.add(shard)
        if len(self._failing) >= ATTEMPTS:
            raise UserError(
                f"{ATTEMPTS} shards in a row failed in this process, so it stops and leaves the rest to others. The "
                f"last reason: {self.reason}. The tracebacks are in {self._work.folder / 'failures'}."
            ) from error
