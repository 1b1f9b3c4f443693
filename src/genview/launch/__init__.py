"""Who does the shards of a stage: this process, processes of this machine, an array of jobs, or Ray.

The work is an immutable plan of shards and a plain function of a shard id; every launcher hands out ids and nothing
else. What is done is seen from the files alone, so workers may come, go, and do the same shard twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from genview.launch.here import Here
from genview.launch.indexed import Indexed
from genview.launch.lease import alone
from genview.launch.local import Local
from genview.launch.on_ray import Ray
from genview.launch.work import ATTEMPTS, Tell, Work

Launcher = Here | Local | Indexed | Ray


def launch(launcher: Launcher, work: Work, shards: Sequence[int], tell: Tell) -> None:
    """Do those of `shards` that are not finished; `tell` gets how many are, of how many, and a note.

    Raises:
        UserError: a worker met what the user can mend (shards that others had begun are finished first), or a shard
            failed three times (all others are done).
    """
    launcher.run(work, shards, tell)


__all__ = ["ATTEMPTS", "Here", "Indexed", "Launcher", "Local", "Ray", "Tell", "Work", "alone", "launch"]
