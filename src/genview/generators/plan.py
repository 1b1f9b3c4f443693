"""The plan of the generate stage: which views there are to be, written once and never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.settings import FilterSettings, ScoreSettings
from genview.store import read_table

Tell = Callable[[str, int, int, str], None]
Columns = dict[str, np.ndarray]


class Rows(NamedTuple):
    """The M planned views of a shard, all draws of an image side by side, and the conditions M×E, float32."""

    key: np.ndarray
    draw: np.ndarray
    level: np.ndarray
    seed: np.ndarray
    guidance: np.ndarray
    texts: Sequence[Text] | None
    condition: Tensor


@dataclass(frozen=True)
class Plan:
    """A plan of shards in `folder`/plan. All draws of an image lie in one shard.

    `analysis` is the folder of analysed images, relative to `folder`, and `parts` its parts with their rows;
    shard i holds `images_a_shard` images from i · `images_a_shard` on, and a part of the plan `shards_a_part`.
    """

    folder: Path
    analysis: str
    parts: tuple[tuple[str, int], ...]
    draws: int
    images_a_shard: int
    shards_a_part: int
    seed: int
    format: str
    scores: ScoreSettings | None
    filter: FilterSettings | None

    @staticmethod
    def open(folder: Path) -> Plan:
        """Read the plan of a folder of views.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = folder / "plan" / "plan.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            parts = tuple((str(name), int(rows)) for name, rows in found.pop("parts"))
            scores, filter_ = found.pop("scores"), found.pop("filter")
            return Plan(
                folder=folder,
                parts=parts,
                scores=ScoreSettings(**scores) if scores else None,
                filter=FilterSettings(**filter_) if filter_ else None,
                **found,
            )
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no plan of views: run `genview generate` first.") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run `genview generate` again.") from error

    def __len__(self) -> int:
        """Shards."""
        return -(-self.images // self.images_a_shard)

    @cached_property
    def images(self) -> int:
        """Analysed images."""
        return sum(rows for _, rows in self.parts)

    @property
    def views(self) -> int:
        """Planned views."""
        return self.images * self.draws

    def images_of(self, shard: int) -> range:
        """Return which images a shard holds."""
        first = shard * self.images_a_shard
        return range(first, min(first + self.images_a_shard, self.images))

    def sidecar(self, shard: int) -> Path:
        """Return the table that says what became of every view of a shard; the shard is done when it exists."""
        return sidecar_of(self.folder, shard)

    def planned(self) -> Iterator[Columns]:
        """Yield the planned rows of every shard in turn."""
        for first in range(0, len(self), self.shards_a_part):
            part = self._part(first)
            for shard in range(first, min(first + self.shards_a_part, len(self))):
                yield self._cut(part, shard)

    def rows(self, shard: int) -> Rows:
        """Return the planned views of a shard with their conditions.

        Raises:
            UserError: a part of the plan or of the analysis is gone, damaged or has changed.
        """
        planned = self._cut(self._part(shard), shard)
        texts = None
        if "prompt" in planned:
            texts = [Text(*pair) for pair in zip(planned["prompt"], planned["negative"], strict=True)]
        embedding = self.embeddings(self.folder / self.analysis, shard, planned["key"][:: self.draws])
        names = ("key", "draw", "level", "seed", "guidance")
        return Rows(**{name: planned[name] for name in names}, texts=texts, condition=embedding)

    def embeddings(self, folder: Path, shard: int, keys: np.ndarray, stage: str = "analyse") -> Tensor:
        """Return the embeddings of a shard's planned views, float32, from a folder whose parts are the analysis'.

        `stage` is the verb that writes that folder.

        Raises:
            UserError: a part is gone or damaged, or holds other images than `keys`, those of the plan.
        """
        images, starts, pieces = self.images_of(shard), self._starts, []
        first, last = np.searchsorted(starts, (images.start, images.stop - 1), "right") - 1
        for place in range(first, last + 1):
            path = folder / self.parts[place][0]
            if not path.exists():
                raise UserError(f"{path} is gone, from which views are made: run `genview {stage}` and go on.")
            part = read_table(path, ["key", "embedding"])
            cut = slice(max(0, images.start - starts[place]), max(0, images.stop - starts[place]))
            pieces.append({name: column[cut] for name, column in part.items()})
        if not np.array_equal(np.concatenate([piece["key"] for piece in pieces]), keys):
            raise UserError(
                f"{folder} holds other images than when the views in {self.folder} were planned. Put it back as it "
                "was, or delete the folder of views to make them anew."
            )
        embedding = np.concatenate([piece["embedding"] for piece in pieces]).astype(np.float32)
        return torch.from_numpy(embedding).repeat_interleave(self.draws, dim=0)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(rows for _, rows in self.parts[:-1])])

    def _part(self, shard: int) -> Columns:
        path = plan_part(self.folder, shard // self.shards_a_part)
        try:
            return read_table(path)
        except UserError as error:
            mark = self.folder / "plan" / "plan.json"
            raise UserError(
                f"{path}, a part of the plan, is gone or damaged. Delete {mark} and run `genview generate` again: "
                "it writes the same plan once more, and keeps the views."
            ) from error

    def _cut(self, part: Columns, shard: int) -> Columns:
        first = shard % self.shards_a_part * self.images_a_shard * self.draws
        rows = slice(first, first + len(self.images_of(shard)) * self.draws)
        return {name: column[rows] for name, column in part.items()}


def sidecar_of(folder: Path, shard: int) -> Path:
    """Return where the table of a shard lies, for those who need no plan to look whether it is there."""
    return folder / f"part-{shard:05d}.parquet"


def plan_part(folder: Path, number: int) -> Path:
    """Return where a part of the plan of a folder of views lies."""
    return folder / "plan" / f"part-{number:05d}.parquet"
