"""Weighted pairs kept for the page: pictures of the extremes, and numbers of the latest ones."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genview.errors import UserError
from genview.quality import Quality
from genview.store import read_table, write_arrays, write_table

EACH_SIDE = 8
MOST_PAIRS = 20_000
PICTURES, NUMBERS = "examples.npz", "quality.parquet"
COLUMNS = {
    "level": np.int64,
    "weight": np.float32,
    "foreground": np.float32,
    "background": np.float32,
    "loss": np.float32,
    "step": np.int64,
}


@dataclass
class PairExamples:
    """At most `EACH_SIDE` pairs of each extreme with their views, and the numbers of the latest `MOST_PAIRS`.

    The level of a pair is the higher one of its two views, −1 where both are of the original.
    """

    _shown: list[dict[str, np.ndarray]] = field(default_factory=list)
    _latest: list[dict[str, np.ndarray]] = field(default_factory=list)

    @staticmethod
    def continued(folder: Path, step: int) -> PairExamples:
        """Return what was saved below `folder`, without what came after `step`: a resumed run takes it again.

        Raises:
            UserError: a file is damaged.
        """
        found = PairExamples()
        if step and (folder / NUMBERS).exists():
            table = read_table(folder / NUMBERS, list(COLUMNS))
            found._latest = [{name: values[table["step"] <= step] for name, values in table.items()}]
        if step and (folder / PICTURES).exists():
            rows = _rows(folder / PICTURES)
            found._shown = [row for row in rows if int(row.get("step", step)) <= step]
        return found

    def offer(
        self,
        views: Sequence[Tensor],
        quality: Quality,
        levels: Tensor,
        keys: Sequence[str],
        *,
        losses: Tensor | None,
        step: int,
    ) -> None:
        """Take a batch of pairs.

        Args:
            views: uint8 B×3×S×S each; those of full size, whose pairs are weighed, first.
            quality: of pairs, B or B×P.
            levels: B×V.
            keys: of the B images.
            losses: of pairs, as `quality`; None where the method has none.
            step: number of the step.
        """
        shape = quality.weight.shape
        pairs = _pairs_of(shape[1] if len(shape) > 1 else 1)
        values = {name: getattr(quality, name) for name in ("weight", "foreground", "background")}
        values["loss"] = torch.full(shape, torch.nan) if losses is None or losses.shape != shape else losses
        values["level"] = torch.stack([levels[:, list(pair)].amax(dim=1) for pair in pairs], dim=1)
        values["step"] = torch.full(shape, step)
        flat = {name: values[name].detach().cpu().flatten().numpy().astype(kind) for name, kind in COLUMNS.items()}
        self._latest.append(flat)
        while sum(len(part["step"]) for part in self._latest[1:]) >= MOST_PAIRS:
            self._latest.pop(0)
        for place in _extremes(flat["weight"]):
            row, pair = divmod(place, len(pairs))
            a, b = (views[side][row].permute(1, 2, 0).cpu().numpy() for side in pairs[pair])
            numbers = {name: column[place] for name, column in flat.items()}
            self._shown.append({**numbers, "a": a, "b": b, "keys": np.array(keys[row])})
        self._shown = [self._shown[i] for i in _extremes(np.array([float(row["weight"]) for row in self._shown]))]

    def save(self, folder: Path) -> None:
        """Write both files, pictures from the lowest weight to the highest; nothing where no pair was weighted."""
        if not self._latest:
            return
        joined = {name: np.concatenate([part[name] for part in self._latest])[-MOST_PAIRS:] for name in COLUMNS}
        self._latest = [joined]
        write_table(folder / NUMBERS, joined)
        if self._shown:
            write_arrays(
                folder / PICTURES, {name: np.stack([row[name] for row in self._shown]) for name in self._shown[0]}
            )


def _extremes(weights: np.ndarray) -> list[int]:
    """Places of the lowest and of the highest weights, ascending; none twice."""
    order: list[int] = np.argsort(weights, kind="stable").tolist()
    return order if len(order) <= 2 * EACH_SIDE else order[:EACH_SIDE] + order[-EACH_SIDE:]


def _pairs_of(count: int) -> list[tuple[int, int]]:
    """Views of each of `count` pairs; see `Quality`."""
    views = next(v for v in range(2, count + 3) if v * (v - 1) // 2 == count)
    return list(combinations(range(views), 2))


def _rows(path: Path) -> list[dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run the command again.") from error
    return [{name: values[i] for name, values in columns.items()} for i in range(len(columns["weight"]))]
