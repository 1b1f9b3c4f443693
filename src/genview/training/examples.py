"""The pairs of the last epoch with the highest and the lowest weight, kept for the page."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genview.quality import Quality
from genview.store import write_arrays

EACH_SIDE = 8
MOST_WEIGHTS = 10_000


@dataclass
class PairExamples:
    """At most `EACH_SIDE` pairs of each extreme, and the latest weights of all pairs for a histogram."""

    _rows: list[dict[str, np.ndarray]] = field(default_factory=list)
    _weights: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_WEIGHTS))

    def offer(self, a: Tensor, b: Tensor, quality: Quality, levels: Tensor, keys: list[str]) -> None:
        """Take the extremes of a batch: views uint8 B×3×S×S, their quality, levels B and keys."""
        self._weights.extend(quality.weight.tolist())
        order = torch.argsort(quality.weight.cpu())
        chosen = torch.cat([order[:EACH_SIDE], order[EACH_SIDE:][-EACH_SIDE:]]).tolist()
        for i in chosen:
            self._rows.append(
                {
                    "a": a[i].permute(1, 2, 0).cpu().numpy(),
                    "b": b[i].permute(1, 2, 0).cpu().numpy(),
                    "weight": quality.weight[i].cpu().numpy(),
                    "foreground": quality.foreground[i].cpu().numpy(),
                    "background": quality.background[i].cpu().numpy(),
                    "level": levels[i].cpu().numpy(),
                    "keys": np.array(keys[i]),
                }
            )
        self._rows.sort(key=lambda row: float(row["weight"]))
        if len(self._rows) > 2 * EACH_SIDE:
            self._rows = self._rows[:EACH_SIDE] + self._rows[-EACH_SIDE:]

    def save(self, path: Path) -> None:
        """Write to an .npz file, from the lowest weight to the highest; nothing where no pair was weighted."""
        if not self._rows:
            return
        columns = {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        columns["weights"] = np.array(self._weights, dtype=np.float32)
        write_arrays(path, columns)
