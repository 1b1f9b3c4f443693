"""Processes of this machine do the shards: one for each GPU, or several on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from genview.launch.crew import Crew
from genview.launch.work import Tally, Tell, Work


@dataclass(frozen=True)
class Local:
    """`processes` on `devices`, in turn; 0 takes one for each device.

    `devices` 'auto' are all GPUs, or else the CPU once for each core; the processes share out the cores.
    """

    processes: int = 0
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    kind: Literal["local"] = "local"

    def run(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        """Hand out the shards one at a time; a worker that dies or raises loses no more than its own."""
        tally = Tally(work, shards, tell)
        devices = self.places()
        with Crew(work, tally, devices, threads=max(1, _cores() // len(devices))) as crew:
            while crew.staffed():
                crew.listen()
        crew.conclude()

    def places(self) -> list[str]:
        """Return the device of each process."""
        devices = _devices() if self.devices == "auto" else self.devices
        return list(islice(cycle(devices), self.processes or len(devices)))


def _devices() -> tuple[str, ...]:
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cpu",) * _cores()


def _cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
