"""Training pairs kept for the page: pictures of an even sample and of the extremes, numbers of the latest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genview.images.thumbnail import thumbnail
from genview.pairs import PairBatch
from genview.quality import Quality
from genview.quality.similarity import full_size
from genview.seeds import seed_of
from genview.store import read_table, write_table

SAMPLED, EACH_SIDE = 256, 8
MOST_PAIRS = 50_000
SIDE = 96
PICTURES, NUMBERS = "pictured.parquet", "latest.parquet"
NUMERIC = {
    "draw": np.int64,
    "level": np.int64,
    "weight": np.float32,
    "foreground": np.float32,
    "background": np.float32,
    "loss": np.float32,
    "step": np.int64,
}
COLUMNS = ("key", "class", *NUMERIC)
Columns = dict[str, np.ndarray]
Row = dict[str, object]


@dataclass
class PairExamples:
    """Numbers of the latest `MOST_PAIRS` pairs, and pictures of some of all pairs.

    Pictured are `SAMPLED` pairs, each of those that were offered with equal chance, and `EACH_SIDE` of the lowest and
    of the highest weights. Draw and level of a pair are those of its generated view, of the one with the higher level
    where both are generated, and −1 where both views are of the original. Without quality the weight is 1 and the
    similarities are NaN.
    """

    _pictured: list[Row] = field(default_factory=list)
    _latest: list[Columns] = field(default_factory=list)

    @staticmethod
    def continued(folder: Path, step: int) -> PairExamples:
        """Return what was saved below `folder`, without what came after `step`: a resumed run takes it again.

        Raises:
            UserError: a file is damaged.
        """
        found = PairExamples()
        if step and (folder / NUMBERS).exists():
            found._latest = [_until(step, read_table(folder / NUMBERS, list(COLUMNS)))]
        if step and (folder / PICTURES).exists():
            table = _until(step, read_table(folder / PICTURES))
            found._pictured = [{name: values[i] for name, values in table.items()} for i in range(len(table["step"]))]
        return found

    def offer(
        self,
        batch: PairBatch,
        quality: Quality | None,
        keys: Sequence[str],
        classes: Sequence[str],
        *,
        losses: Tensor | None,
        step: int,
    ) -> None:
        """Take a batch of pairs.

        Args:
            batch: with its looks applied.
            quality: of pairs, B or B×P; None where pairs are not weighed.
            keys: of the B images.
            classes: names of their classes, "" where there are none.
            losses: of pairs, as `quality`; None where the method has none.
            step: number of the step.
        """
        pairs = list(combinations(range(len(full_size(batch.views))), 2))
        numbers = _numbers(batch, quality, losses, pairs)
        numbers["step"] = torch.full((len(keys), len(pairs)), step)
        table = {name: numbers[name].flatten().cpu().numpy().astype(kind) for name, kind in NUMERIC.items()}
        names = {"key": np.array(keys, dtype=object), "class": np.array(classes, dtype=object)}
        table |= {name: values.repeat(len(pairs)) for name, values in names.items()}
        self._latest.append(table)
        while sum(len(part["step"]) for part in self._latest[1:]) >= MOST_PAIRS:
            self._latest.pop(0)
        self._picture(batch, pairs, table)

    def _picture(self, batch: PairBatch, pairs: Sequence[tuple[int, int]], table: Columns) -> None:
        """Choose anew among the pictured pairs and those of a batch; only pictures of chosen ones are made."""
        known = self._pictured
        chances = np.random.default_rng(seed_of(0, "", int(table["step"][0]), "pictures")).random(len(table["step"]))
        weights = np.array([*(row["weight"] for row in known), *table["weight"]], dtype=float)
        chances = np.array([*(row["chance"] for row in known), *chances], dtype=float)
        self._pictured = [
            known[place] if place < len(known) else _row(batch, pairs, table, place - len(known), chances[place])
            for place in _chosen(weights, chances)
        ]

    def save(self, folder: Path) -> None:
        """Write both files, pictures from the lowest weight to the highest; nothing where no pair was offered."""
        if not self._latest:
            return
        joined = {name: np.concatenate([part[name] for part in self._latest])[-MOST_PAIRS:] for name in COLUMNS}
        self._latest = [joined]
        write_table(folder / NUMBERS, joined)
        if self._pictured:
            names = self._pictured[0]
            write_table(folder / PICTURES, {name: _column([row[name] for row in self._pictured]) for name in names})


def _until(step: int, table: Columns) -> Columns:
    return {name: values[table["step"] <= step] for name, values in table.items()}


def _numbers(
    batch: PairBatch, quality: Quality | None, losses: Tensor | None, pairs: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Draw, level, quality and loss of the pairs, B×P or B each."""
    sides = torch.tensor(pairs)
    levels, draws = batch.levels[:, sides], batch.origin.draw[:, sides]
    # A level may be unknown, which is a number below that of an original: generated views come first.
    higher = levels.masked_fill(draws < 0, torch.iinfo(levels.dtype).min).argmax(dim=-1, keepdim=True)
    found = {"level": levels.gather(-1, higher), "draw": draws.gather(-1, higher)}
    nothing = torch.full((len(levels), len(pairs)), torch.nan)
    for name in ("weight", "foreground", "background"):
        found[name] = nothing if quality is None else getattr(quality, name).detach()
    if quality is None:
        found["weight"] = torch.ones_like(nothing)
    found["loss"] = nothing if losses is None or losses.numel() != nothing.numel() else losses.detach()
    return found


def _chosen(weights: np.ndarray, chances: np.ndarray) -> list[int]:
    """Places of the lowest chances and of the extreme weights, by rising weight; none twice."""
    order = np.argsort(weights, kind="stable")
    extreme = [*order[:EACH_SIDE], *order[-EACH_SIDE:]] if np.ptp(weights) > 0 else []
    wanted = {int(place) for place in (*np.argsort(chances, kind="stable")[:SAMPLED], *extreme)}
    return [place for place in order.tolist() if place in wanted]


def _row(batch: PairBatch, pairs: Sequence[tuple[int, int]], table: Columns, place: int, chance: float) -> Row:
    """A pair with both its views as they were shown to the encoder, as small pictures."""
    row, pair = divmod(place, len(pairs))
    shown = (batch.views[side][row].permute(1, 2, 0).cpu().numpy() for side in pairs[pair])
    a, b = (thumbnail(Image.fromarray(view), SIDE) for view in shown)
    return {**{name: table[name][place] for name in COLUMNS}, "chance": chance, "a": a, "b": b}


def _column(values: list[object]) -> np.ndarray:
    """Values of one kind as an array that `write_table` takes; bytes stay what they are."""
    return np.array(values, dtype=object if isinstance(values[0], (str, bytes)) else None)
