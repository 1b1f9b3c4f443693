"""Principal direction of patch tokens, fitted in a stream, and the threshold along it (GenView, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from genview.errors import UserError
from genview.store import write_bytes

BINS = 1 << 16
REACH = 12.0
"""Half the histogram's range in standard deviations of the scores."""


@dataclass(frozen=True)
class Direction:
    """First principal direction: unit `vector` D, `mean` token D, and the share of variance `explained` by it.

    Scores are projections that are not centred, as in the paper's code; the threshold belongs to the same scores,
    so the offset cancels.
    """

    vector: Tensor
    mean: Tensor
    explained: float

    def scores(self, tokens: Tensor) -> Tensor:
        """Tokens …×D → scores …, float32."""
        return tokens.float() @ self.vector.to(tokens.device)

    def flipped(self) -> Direction:
        """The same axis, pointing the other way."""
        return Direction(-self.vector, self.mean, self.explained)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors = {"vector": self.vector, "mean": self.mean, "explained": torch.tensor(self.explained)}
        write_bytes(path, safetensors.torch.save({k: v.float().contiguous() for k, v in tensors.items()}))

    @staticmethod
    def load(path: Path) -> Direction:
        """Read what `save` wrote."""
        found = safetensors.torch.load_file(path)
        return Direction(found["vector"], found["mean"], float(found["explained"]))

    @staticmethod
    def from_npy(path: Path, width: int | None = None) -> Direction:
        """Read an .npy vector of shape (D,) or (D, 1), the authors' or one's own; nothing is unpickled.

        Raises:
            UserError: the file is missing, no such array, or of another width than the encoder's tokens.
        """
        try:
            vector = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as an .npy vector: {error}") from error
        if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "fiu":
            raise UserError(f"{path} is not one array of real numbers; a direction is an .npy vector of floats.")
        if vector.ndim not in (1, 2) or vector.size != max(vector.shape):
            raise UserError(f"{path} has shape {vector.shape}; a direction is one vector, (D,) or (D, 1).")
        flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32)).flatten()
        if not bool(torch.isfinite(flat).all() & flat.any()):
            raise UserError(f"{path} is empty, all zeros, or has values that are not finite: it points nowhere.")
        if width is not None and len(flat) != width:
            raise UserError(
                f"{path} has {len(flat)} values, but the encoder's tokens have {width}: it belongs to another one."
            )
        return Direction(flat, torch.zeros_like(flat), float("nan"))


@dataclass
class TokenMoments:
    """Count, mean and scatter of tokens, in float64; memory is D×D whatever the number of tokens."""

    width: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.width, dtype=torch.float64)
        self.scatter = torch.zeros(self.width, self.width, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        """Merge tokens …×D exactly (Chan, Golub and LeVeque, 1979)."""
        rows = tokens.reshape(-1, self.width).double().cpu()
        mean = rows.mean(dim=0)
        centred, shift = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def direction(self) -> tuple[Direction, float]:
        """Return the first eigenvector of the covariance, and its eigenvalue (the variance of the scores)."""
        values, vectors = torch.linalg.eigh(self.scatter / self.count)
        vector, variance = vectors[:, -1], float(values[-1].clamp(min=0))
        # An eigenvector has no sign of its own; this makes it the same one everywhere until the sign is decided.
        vector = vector * torch.sign(vector[vector.abs().argmax()])
        explained = variance / max(float(values.clamp(min=0).sum()), 1e-30)
        return Direction(vector.float(), self.mean.float(), explained), variance


def principal_direction(tokens: Tensor) -> Direction:
    """First principal direction of tokens M×D: centred covariance, eigenvector of the largest eigenvalue.

    Its sign is arbitrary; `genview.foreground.sign` decides which side is foreground.
    """
    moments = TokenMoments(tokens.shape[-1])
    moments.add(tokens)
    return moments.direction()[0]


class ScoreHistogram:
    """Scores in 65,536 bins over ±12 σ: quantiles in fixed memory, exact to 0.0004 σ."""

    def __init__(self, centre: float, variance: float) -> None:
        self.reach = REACH * max(variance, 1e-12) ** 0.5
        self.low = centre - self.reach
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, scores: Tensor) -> None:
        """Count scores of any shape; those out of range go to the end bins."""
        places = ((scores.double().cpu() - self.low) / (2 * self.reach) * BINS).long().clamp(0, BINS - 1)
        self.counts += torch.bincount(places.flatten(), minlength=BINS)

    def threshold(self, share: float) -> float:
        """Return the score above which the stated share of all scores lies."""
        above = self.counts.flip(0).cumsum(0).flip(0)
        bins = torch.nonzero(above > share * float(above[0]))
        edge = int(bins[-1]) + 1 if len(bins) else 0
        return float(self.low + edge * 2 * self.reach / BINS)
