"""The order in which training visits images."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genview.seeds import seed_of


def positions(
    length: int, batch: int, *, first: int, last: int, seed: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield, for the steps `first`…`last`−1, the (epoch, index) positions of this process.

    Every epoch is a fresh permutation from the seed; the rest that does not fill a batch is left out, as is
    usual. A step's global batch is the same whatever the number of processes, each of which takes its slice.
    """
    per_epoch = length // batch
    share = batch // world
    epoch, order = -1, torch.empty(0)
    for step in range(first, last):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            generator = torch.Generator().manual_seed(seed_of(seed, "", epoch, "order"))
            order = torch.randperm(length, generator=generator)
        start = (step % per_epoch) * batch + rank * share
        yield [(epoch, int(i)) for i in order[start : start + share]]
