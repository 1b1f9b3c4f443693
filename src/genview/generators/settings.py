"""What the generate stage is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genview.errors import UserError


@dataclass(frozen=True)
class ScoreSettings:
    """The frozen encoder that compares a view with its source: 'generator' (its own), a timm name, or a folder."""

    encoder: str = "generator"


@dataclass(frozen=True)
class FilterSettings:
    """What happens to views whose score lies outside `lowest`…`highest`.

    'keep' keeps them, 'drop' drops them, 'redraw' makes them again with the next seed, at most `tries` times, and
    drops them after that.
    """

    policy: Literal["keep", "drop", "redraw"] = "keep"
    lowest: float = 0.3
    highest: float = 1.0
    tries: int = 3


@dataclass(frozen=True)
class GenerateSettings:
    """Views per image, views per shard, and how they are stored ('jpeg' at quality 95, or lossless 'png').

    `conditions` is a CSV of key and any of draw, level, guidance, prompt, negative, for images that are to be
    treated on their own terms. `scores` asks for similarity and diversity of every view; `filter` needs them.
    """

    draws: int = 1
    shard: int = 512
    format: Literal["jpeg", "png"] = "jpeg"
    conditions: Path | None = None
    scores: ScoreSettings | None = None
    filter: FilterSettings | None = None

    def check(self) -> None:
        """Check what belongs together.

        Raises:
            UserError: a number is out of range, or there is a filter without scores.
        """
        if self.draws < 1 or self.shard < 1:
            raise UserError(f"generate.draws and generate.shard are at least 1, not {self.draws} and {self.shard}.")
        if self.filter is not None and self.scores is None:
            raise UserError("generate.filter judges views by their scores: set generate.scores, such as {} too.")
        if self.filter is not None and not self.filter.lowest <= self.filter.highest:
            raise UserError("generate.filter.lowest lies above generate.filter.highest: no view could be kept.")
