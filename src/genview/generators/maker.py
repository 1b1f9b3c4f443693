"""Makes views of planned rows: in batches that fit into memory, once more where a result is black, and judged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.frozen import FrozenEncoder
from genview.errors import UserError
from genview.generators.generator import Generator
from genview.generators.plan import Rows


class Maker:
    """What a worker holds while it makes one shard after another.

    Args:
        generator: makes the views.
        batch: views at once; halved, for good, whenever memory does not suffice.
        encoder: looks at views to compare them with their sources; the generator's own where None.
        device: where that encoder is.
    """

    def __init__(
        self,
        generator: Generator,
        batch: int,
        *,
        encoder: FrozenEncoder | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.generator, self.batch, self.device = generator, batch, device
        self.encoder = encoder or generator.encoder

    def views(self, rows: Rows, chosen: np.ndarray, seeds: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Make the views of the rows `chosen` with their `seeds`; yield the indices and views of every batch.

        Views are uint8 B×3×S×S; one that is black in float32 too stays black.

        Raises:
            UserError: not even one view at once fits into memory.
        """
        start = 0
        while start < len(chosen):
            cut = chosen[start : start + self.batch]
            made = _sampled(self.generator, rows, cut, seeds)
            if made is None:
                self._halve()
                continue
            yield cut, self._mended(made, rows, cut, seeds)
            start += len(cut)

    def embedded(self, views: Tensor) -> Tensor:
        """Return the embeddings B×E of views, of length one, on the CPU."""
        try:
            found = self.encoder.encode(views.to(self.device).float() / 255).embedding
        except torch.OutOfMemoryError:
            if len(views) == 1:
                raise
            found = torch.cat([self.embedded(half) for half in views.chunk(2)])
        return F.normalize(found.float().cpu(), dim=1)

    @cached_property
    def _exact(self) -> Generator:
        return self.generator.exact()

    def _mended(self, views: Tensor, rows: Rows, cut: np.ndarray, seeds: np.ndarray) -> Tensor:
        """Make black views again in float32, one by one, so that their bytes do not depend on their neighbours."""
        for place in np.flatnonzero(black(views)):
            if self._exact is self.generator:
                break
            again = _sampled(self._exact, rows, cut[place : place + 1], seeds)
            if again is not None:
                views[place] = again[0]
        return views

    def _halve(self) -> None:
        if self.batch == 1:
            raise UserError(
                f"One view at once does not fit into the memory of {self.device}. Choose a smaller generator.size, "
                "a lower generator.precision, or a device with more memory, and run the same command again."
            )
        self.batch = max(1, self.batch // 2)
        torch.cuda.empty_cache()


def black(views: Tensor) -> np.ndarray:
    """Return which of the views B×3×S×S are black throughout: their computation overflowed."""
    return np.asarray((views.flatten(1).amax(dim=1) == 0).numpy())


def _sampled(generator: Generator, rows: Rows, cut: np.ndarray, seeds: np.ndarray) -> Tensor | None:
    """Make one batch; None where it does not fit into memory."""
    places = torch.from_numpy(cut)
    try:
        return generator.sample(
            rows.condition[places],
            torch.from_numpy(rows.level[cut].astype(np.int64)),
            torch.from_numpy(rows.guidance[cut]),
            seeds[cut].tolist(),
            None if rows.texts is None else [rows.texts[i] for i in cut],
        )
    except torch.OutOfMemoryError:
        return None
