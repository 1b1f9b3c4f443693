"""From foreground ratio to noise level: the more foreground, the more noise (GenView, section 3.2)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genview.errors import UserError
from genview.seeds import seed_of

PAPER_LEVELS = (0, 100, 200, 300, 400)
HIGHEST = 999
UNKNOWN = -2
"""The level of a view that was made elsewhere and says none; −1 is that of pairs without a generated view."""


def adaptive_level(ratio: Tensor) -> Tensor:
    """Noise level of foreground ratios in [0, 1]: [0, 0.2] → 0, (0.2, 0.4] → 100, … (0.8, 1] → 400.

    Any shape and type of number; the result is int64 of the same shape. What rounding takes below 0 or above 1
    counts as 0 or 1 (above 1 the authors' code says 500, which their generator refuses).
    """
    return _bins(ratio, PAPER_LEVELS)


def _bins(ratio: Tensor, levels: Sequence[int]) -> Tensor:
    """Equal bins, open on the left, closed on the right; the edges are compared in the ratio's own precision."""
    values = (ratio.detach() if ratio.is_floating_point() else ratio.double()).contiguous()
    edges = torch.arange(1, len(levels), dtype=torch.float64) / len(levels)
    places = torch.bucketize(values, edges.to(values.dtype).to(values.device))
    return torch.tensor(levels, dtype=torch.int64, device=values.device)[places]


@dataclass(frozen=True)
class Adaptive:
    """Equal bins of the foreground ratio, from the least noise to the most."""

    kind: Literal["adaptive"] = "adaptive"
    levels: tuple[int, ...] = PAPER_LEVELS

    def levels_of(self, keys: Sequence[str], ratio: np.ndarray, *, draw: int, seed: int) -> np.ndarray:  # noqa: ARG002
        """Levels of images with these keys and ratios, int64."""
        return _bins(torch.tensor(ratio), _checked(self.levels)).numpy()


@dataclass(frozen=True)
class Constant:
    """One level for all."""

    level: int
    kind: Literal["constant"] = "constant"

    def levels_of(self, keys: Sequence[str], ratio: np.ndarray, *, draw: int, seed: int) -> np.ndarray:  # noqa: ARG002
        """Levels of images with these keys and ratios, int64."""
        return np.full(len(keys), _checked((self.level,))[0], dtype=np.int64)


@dataclass(frozen=True)
class Random:
    """A level drawn for each image and draw; the same for the same seed, whatever the order."""

    kind: Literal["random"] = "random"
    levels: tuple[int, ...] = PAPER_LEVELS

    def levels_of(self, keys: Sequence[str], ratio: np.ndarray, *, draw: int, seed: int) -> np.ndarray:  # noqa: ARG002
        """Levels of images with these keys and ratios, int64."""
        levels = _checked(self.levels)
        return np.array([levels[seed_of(seed, key, draw, "level") % len(levels)] for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class FromFile:
    """Levels of one's own: a CSV of key,level rows, with a header or without."""

    file: Path
    kind: Literal["file"] = "file"

    def levels_of(self, keys: Sequence[str], ratio: np.ndarray, *, draw: int, seed: int) -> np.ndarray:  # noqa: ARG002
        """Levels of images with these keys and ratios, int64.

        Raises:
            UserError: the file cannot be read, names a key twice, or leaves one out.
        """
        table = self._table
        absent = [key for key in keys if key not in table]
        if absent:
            raise UserError(f"{self.file} gives no level for {len(absent)} images, the first being '{absent[0]}'.")
        return np.array(_checked([table[key] for key in keys]), dtype=np.int64)

    @cached_property
    def _table(self) -> dict[str, int]:
        return _read_levels(self.file)


NoisePolicy = Adaptive | Constant | Random | FromFile


def _checked(levels: Sequence[int]) -> Sequence[int]:
    bad = [level for level in levels if not 0 <= level <= HIGHEST]
    if bad or not levels:
        raise UserError(f"Noise levels are whole numbers from 0 to {HIGHEST}; found {bad or 'none'}.")
    return levels


def _read_levels(file: Path) -> dict[str, int]:
    try:
        rows = [row for row in csv.reader(file.read_text().splitlines()) if row]
        if rows and rows[0] == ["key", "level"]:
            rows = rows[1:]
        table = {key: int(level) for key, level in rows}
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{file} cannot be read as rows of key,level: {error}") from error
    if len(table) < len(rows):
        twice = Counter(key for key, _ in rows).most_common(1)[0][0]
        raise UserError(f"{file} gives more than one level for '{twice}': keep one row for each key.")
    return table
