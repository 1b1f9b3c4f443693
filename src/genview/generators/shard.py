"""One shard of views: made, judged, encoded and written; a plain function of a plan and a number."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genview.generators.maker import Maker, black
from genview.generators.plan import Columns, Plan, Rows
from genview.generators.scores import SOURCES, diversity
from genview.generators.settings import FilterSettings
from genview.seeds import seed_of
from genview.store import write_named_tar, write_table
from genview.store.table import Column

MADE, DROPPED, FAILED = "made", "dropped", "failed"
ENCODERS = 2
"""Threads that encode images while the next batch is being sampled."""


def run_shard(plan: Plan, number: int, maker: Maker, tell: Callable[[int], None] = lambda _done: None) -> None:
    """Make shard `number` of a plan, unless it is there: a tar of images and, after it, the table that marks it done.

    Any number of processes may do this at the same time, for the same shard too, and be killed at any moment: the
    first table stays, and what others left is removed by `merge`. `tell` is told how many views are made.

    Raises:
        UserError: an input is gone or damaged, the disk is full, or not even one view at once fits into memory.
    """
    if plan.sidecar(number).exists():
        return
    rows = plan.rows(number)
    source = _sources(plan, number, rows)
    with ThreadPoolExecutor(ENCODERS) as pool:
        shard = Shard(plan, rows, maker, pool, source)
        shard.make(np.arange(len(rows.key)), tell)
        for attempt in range(1, _tries(plan.filter) + 1):
            shard.make(shard.redraw(attempt), lambda _done: None)
        files = {place: future.result() for place, future in shard.files.items()}
    try:
        _write(plan, number, shard, files)
    except FileNotFoundError:
        if not plan.sidecar(number).exists():  # otherwise another worker was first and the store is merged already
            raise


def encoded(view: Tensor, format_: str) -> bytes:
    """Return a view, uint8 3×S×S, as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(buffer, format_, quality=95)
    return buffer.getvalue()


@dataclass
class Shard:
    """The views of a shard while they are made: M rows, each with what became of it so far.

    `source` holds the embeddings M×E of the sources, of length one, or is None where no score was asked for.
    """

    plan: Plan
    rows: Rows
    maker: Maker
    pool: ThreadPoolExecutor
    source: Tensor | None
    seeds: np.ndarray = field(init=False)
    status: np.ndarray = field(init=False)
    score: np.ndarray = field(init=False)
    embedding: Tensor | None = field(init=False)
    files: dict[int, Future[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.rows.key)
        self.seeds = self.rows.seed.copy()
        self.status = np.full(count, FAILED, dtype=object)
        self.score = np.full(count, np.nan, dtype=np.float32)
        self.embedding = None if self.source is None else torch.zeros_like(self.source)

    def make(self, chosen: np.ndarray, tell: Callable[[int], None]) -> None:
        """Make the views of some rows, judge them, and have them encoded meanwhile."""
        done = 0
        for cut, views in self.maker.views(self.rows, chosen, self.seeds):
            bad = black(views)
            self.status[cut] = np.where(bad, FAILED, MADE)
            if self.source is not None and self.embedding is not None:
                seen = self.maker.embedded(views)
                self.embedding[cut] = seen
                score = (seen * self.source[cut]).sum(dim=1).clamp(-1, 1).numpy()
                self.score[cut] = np.where(bad, np.nan, score)
                self.status[cut[_rejected(self.plan.filter, self.score[cut])]] = DROPPED
            for place, view in zip(cut.tolist(), views, strict=True):
                if self.status[place] == MADE:
                    self.files[place] = self.pool.submit(encoded, view, self.plan.format)
            done += len(cut)
            tell(done)

    def redraw(self, attempt: int) -> np.ndarray:
        """Give every dropped row its next seed and return which these are."""
        chosen = np.flatnonzero(self.status == DROPPED)
        for place in chosen:
            key, draw = str(self.rows.key[place]), int(self.rows.draw[place])
            self.seeds[place] = seed_of(self.plan.seed, key, draw, f"view, try {attempt}")
        return chosen

    def diversity(self) -> np.ndarray:
        """Return how far each made view lies from the other made draws of its image; see `diversity`."""
        if self.embedding is None:
            return np.full(len(self.status), np.nan, dtype=np.float32)
        return diversity(self.embedding, self.status == MADE, self.plan.draws)


def _tries(filter_: FilterSettings | None) -> int:
    return filter_.tries if filter_ is not None and filter_.policy == "redraw" else 0


def _rejected(filter_: FilterSettings | None, score: np.ndarray) -> np.ndarray:
    """Return which scores lie outside what the filter allows; a score that is not known does not."""
    if filter_ is None or filter_.policy == "keep":
        return np.zeros(len(score), dtype=bool)
    return (score < filter_.lowest) | (score > filter_.highest)


def _sources(plan: Plan, number: int, rows: Rows) -> Tensor | None:
    if plan.scores is None:
        return None
    if plan.scores.encoder == "generator":
        found = rows.condition
    else:
        found = plan.embeddings(plan.folder / SOURCES, number, rows.key[:: plan.draws], "generate")
    return torch.nn.functional.normalize(found, dim=1)


def write_images(part: Path, rows: Columns, images: Iterable[tuple[int, str, bytes]]) -> dict[str, Column]:
    """Write the tar of a shard and return where its images lie, which belongs into its sidecar `part`.

    Args:
        part: the path of the sidecar.
        rows: key, draw, level and seed of every view of the shard; each image gets its own as a JSON file.
        images: rows in some order, the extension and the bytes of an image file for each; taken one by one.

    Returns:
        Columns shard, shard_bytes, offset and length, a value for each row; 0 where there is no image.
    """
    written: list[int] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for row, extension, data in images:
            written.append(row)
            about = {"key": rows["key"][row], **{name: int(rows[name][row]) for name in ("draw", "level", "seed")}}
            yield f"{part.stem}-{row:06d}.{extension}", data
            yield f"{part.stem}-{row:06d}.json", json.dumps(about, ensure_ascii=False).encode()

    tar = write_named_tar(part.parent, part.stem, members())
    places = np.zeros((len(rows["key"]), 2), dtype=np.int64)
    places[written] = np.array(tar.places[::2], dtype=np.int64).reshape(-1, 2)
    return {
        "shard": [tar.name] * len(places),
        "shard_bytes": np.full(len(places), tar.size, dtype=np.int64),
        "offset": places[:, 0],
        "length": places[:, 1],
    }


def _write(plan: Plan, number: int, shard: Shard, files: Mapping[int, bytes]) -> None:
    """Write the tar, then the table that marks the shard as done."""
    part = plan.sidecar(number)
    extension = {"jpeg": "jpg"}.get(plan.format, plan.format)
    rows = {name: getattr(shard.rows, name) for name in ("key", "draw", "level", "guidance")}
    rows["seed"] = shard.seeds
    placed = write_images(part, rows, ((row, extension, files[row]) for row in sorted(files)))
    judged = {"score": shard.score, "diversity": shard.diversity()}
    write_table(part, {**rows, "status": shard.status, **placed, **judged}, first=True)
