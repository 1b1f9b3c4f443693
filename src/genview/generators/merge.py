"""From finished shards to one store: every sidecar checked against the plan, counted, and indexed by key."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from genview.errors import UserError
from genview.generators.plan import Columns, Plan, Tell
from genview.generators.shard import DROPPED, FAILED, MADE
from genview.store import read_table, sweep, write_json, write_mapped

INDEX, SHARDS, SUMMARY = "index.arrow", "shards.json", "summary.json"
TAR = re.compile(r"part-\d{5,}-[0-9a-f]+\.tar")
SIDECAR = ("key", "draw", "level", "status", "shard", "shard_bytes", "offset", "length", "score", "diversity")
KINDS = {
    "draw": np.int32,
    "level": np.int16,
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int32,
    "score": np.float32,
    "diversity": np.float32,
}


def unfinished(plan: Plan) -> list[int]:
    """Return the shards of a plan that have no sidecar yet."""
    there = {path.name for path in plan.folder.glob("part-*.parquet")}
    return [shard for shard in range(len(plan)) if plan.sidecar(shard).name not in there]


def merged(plan: Plan) -> bool:
    """Whether the store is merged and still whole, as far as names and sizes of its files tell."""
    folder = plan.folder
    if not all((folder / name).exists() for name in (INDEX, SHARDS, SUMMARY)) or unfinished(plan):
        return False
    try:
        sizes = json.loads((folder / SHARDS).read_text())
    except ValueError:
        return False
    return all(_size(folder / str(name)) == size for name, size in sizes)


def merge(plan: Plan, tell: Tell) -> list[int]:
    """Check every shard against the plan and write index and summary; or return the shards that must be made anew.

    One pass over the sidecars: reading them is what takes long, and the arrays kept take 46 bytes a view. The
    sidecar of a shard that is damaged, or whose tar is gone or has another size, is removed. When all are whole,
    tars that no sidecar names are removed, as are files that killed workers left half written; `summary.json`
    is written last and marks the store as merged. Several processes may merge at once: they write the same.

    Raises:
        UserError: the plan is damaged, or the disk is full.
    """
    index, counts, bad = Index(plan.views), Counter[str](), []
    for shard, planned in enumerate(plan.planned()):
        found = _checked(plan, shard, planned)
        if found is None:
            (plan.folder / SUMMARY).unlink(missing_ok=True)
            plan.sidecar(shard).unlink(missing_ok=True)
            bad.append(shard)
        elif not bad:
            index.add(found)
            counts.update(dict(zip(*np.unique(found["status"].astype(str), return_counts=True), strict=True)))
        tell("merge", shard + 1, len(plan), "")
    if not bad:
        _tidy(plan.folder, {name for name, _ in index.shards})
        try:
            index.write(plan.folder, {name: int(counts[name]) for name in (MADE, DROPPED, FAILED)})
        except FileNotFoundError:
            if not merged(plan):  # otherwise another process was first and has swept what this one was writing
                raise
        sweep(plan.folder)
    return bad


@dataclass
class Index:
    """Gathers the rows of at most `capacity` views, shard by shard, and writes what `ViewTable` opens."""

    capacity: int
    shards: list[tuple[str, int]] = field(default_factory=list)
    _used: int = 0

    def __post_init__(self) -> None:
        self._columns = {name: np.empty(self.capacity, dtype=kind) for name, kind in KINDS.items()}
        self._high, self._low = np.empty(self.capacity, np.uint64), np.empty(self.capacity, np.uint64)

    def add(self, sidecar: Columns) -> None:
        """Take in the made views of a sidecar that has all columns of `SIDECAR` and is of one shard."""
        chosen = np.flatnonzero(sidecar["status"] == MADE)
        rows = slice(self._used, self._used + len(chosen))
        self._high[rows], self._low[rows] = digests(sidecar["key"][chosen])
        for name, column in self._columns.items():
            column[rows] = len(self.shards) if name == "shard" else sidecar[name][chosen]
        self._used = rows.stop
        self.shards.append((str(sidecar["shard"][0]), int(sidecar["shard_bytes"][0])))

    def write(self, folder: Path, counts: dict[str, int]) -> None:
        """Write the index sorted by digest of the key and draw, names and sizes of the shards, and the summary."""
        high, low = self._high[: self._used], self._low[: self._used]
        columns = {name: column[: self._used] for name, column in self._columns.items()}
        order = np.lexsort((columns["draw"], low, high))
        levels, views = np.unique(columns["level"], return_counts=True)
        for column in (high, low, *columns.values()):  # in place, one after another: never two copies of all
            column[:] = column[order]
        write_mapped(folder / INDEX, {"high": high, "low": low, **columns})
        write_json(folder / SHARDS, self.shards)
        summary = {
            "planned": sum(counts.values()),
            **counts,
            "levels": {str(level): int(count) for level, count in zip(levels, views, strict=True)},
            "bytes": sum(size for _, size in self.shards),
        }
        write_json(folder / SUMMARY, summary)


def digests(keys: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper and lower halves, uint64, of a 128-bit digest of each key: two keys never share one."""
    joined = b"".join(hashlib.blake2b(str(key).encode(), digest_size=16).digest() for key in keys)
    halves = np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _checked(plan: Plan, shard: int, planned: Columns) -> Columns | None:
    """Return the sidecar of a shard where it and its tar are whole, and it has the planned rows, each once."""
    try:
        found = read_table(plan.sidecar(shard), SIDECAR)
    except UserError:
        return None
    names = set(found["shard"])
    same = all(np.array_equal(found[name], planned[name]) for name in ("key", "draw"))
    if not same or len(names) != 1 or not TAR.fullmatch(name := str(names.pop())):
        return None
    return found if _size(plan.folder / name) == found["shard_bytes"][0] else None


def _size(path: Path) -> int:
    """Size in bytes; -1 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _tidy(folder: Path, named: set[str]) -> None:
    """Remove tars that no sidecar names, and what was left half written of the plan."""
    for path in folder.glob("part-*.tar"):
        if TAR.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)
    sweep(folder / "plan")
