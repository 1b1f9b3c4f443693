"""The shards in one process, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from genview.launch.work import Tally, Tell, Work


@dataclass(frozen=True)
class Here:
    """One process on one device ('' takes the first GPU, or the CPU). What goes wrong is raised at once."""

    device: str = ""
    kind: Literal["here"] = "here"

    def run(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        """Do the shards in order."""
        tally = Tally(work, shards, tell)
        if (shard := tally.take()) is None:
            return
        do = work.prepare(self.device or _device())
        while shard is not None:
            do(shard)
            tally.done(shard)
            shard = tally.take()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
