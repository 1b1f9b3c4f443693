"""What the page needs of a run folder, read sparingly; what is missing is None: a run may be half done."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from genview.errors import UserError
from genview.store import Measure, RunFolder

MOST_PARTS = 50
MOST_POINTS = 300
Columns = dict[str, np.ndarray]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """A final score in [0, 1], and that of the same budget without views and weights (None: not measured)."""

    name: str
    value: float
    baseline: float | None

    @property
    def difference(self) -> float | None:
        """Value minus baseline."""
        return None if self.baseline is None else self.value - self.baseline


def results(run: RunFolder) -> list[Result]:
    """Return the last value of every `knn/…` and `linear/…` measure, in the order they were first written."""
    return _results(run.measures(), run.baseline.measures())


def _results(own: Sequence[Measure], plain: Sequence[Measure]) -> list[Result]:
    ours, theirs = _final(own), _final(plain)
    return [Result(name, value, theirs.get(name)) for name, value in ours.items()]


def _final(measures: Sequence[Measure]) -> dict[str, float]:
    return {m.name: m.value for m in measures if m.name.startswith(("knn/", "linear/"))}


@dataclass(frozen=True)
class Series:
    """Steps and values of one measure, equally long, in the order of steps."""

    steps: np.ndarray
    values: np.ndarray


def series(measures: Sequence[Measure], prefix: str) -> Series:
    """Return the finite values of the first measure whose name starts with `prefix`.

    More than `MOST_POINTS` are averaged in equal runs of neighbours.
    """
    name = next((m.name for m in measures if m.name.startswith(prefix)), None)
    points = sorted((m.step, m.value) for m in measures if m.name == name and np.isfinite(m.value))
    pieces = np.array_split(np.array(points, dtype=float).reshape(-1, 2), max(1, min(len(points), MOST_POINTS)))
    means = np.array([piece.mean(axis=0) for piece in pieces if len(piece)]).reshape(-1, 2)
    return Series(means[:, 0], means[:, 1])


@dataclass(frozen=True)
class Material:
    """All that a page is made from. Tables and arrays are None where their stage has not run.

    `views`: columns key, level, shard, offset, length, score of the made views of at most `MOST_PARTS` parts;
    `ratios` too. `generated` counts made views.
    `maps` and `pairs`: the arrays of analysis/examples.npz and pairs/examples.npz.
    """

    run: RunFolder
    measures: list[Measure]
    plain_measures: list[Measure]
    summary: dict[str, object] | None
    ratios: np.ndarray | None
    maps: Columns | None
    views: Columns | None
    pairs: Columns | None
    analysed: int
    generated: int
    quarantined: list[tuple[str, str]]
    experiment: str | None

    @property
    def results(self) -> list[Result]:
        """Final scores beside the baseline's."""
        return _results(self.measures, self.plain_measures)

    @property
    def treatment(self) -> str:
        """What this run has that its baseline lacks, in words; empty where it has nothing more."""
        weighted = any(m.name.startswith("quality/") for m in self.measures)
        parts = ["generated views"] * (self.views is not None)
        parts += ["external images"] * self.run.external.exists() + ["quality weights"] * weighted
        return " and ".join(parts)


def collect(run: RunFolder) -> Material:
    """Read what there is in a run folder.

    Raises:
        UserError: a file is damaged.
    """
    ratios = table(run.analysis, ["ratio"])
    summary = run.analysis / "summary.json"
    return Material(
        run=run,
        measures=run.measures(),
        plain_measures=run.baseline.measures(),
        summary=json.loads(summary.read_text()) if summary.exists() else None,
        ratios=None if ratios is None else ratios["ratio"].astype(np.float64),
        maps=arrays(run.analysis / "examples.npz"),
        views=made_views(run.views),
        pairs=arrays(run.pairs / "examples.npz"),
        analysed=rows(run.analysis),
        generated=made(run.views),
        quarantined=quarantined(run),
        experiment=run.experiment.read_text() if run.experiment.exists() else None,
    )


def parts(folder: Path) -> list[Path]:
    """Return the finished parts of a stage."""
    return sorted(folder.glob("part-*.parquet"))


def rows(folder: Path) -> int:
    """Count the rows of all parts by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in parts(folder))


def made(folder: Path) -> int:
    """Count the made views: by the summary where the stage has finished, by the finished shards otherwise."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    summary = folder / "summary.json"
    if summary.exists():
        return int(json.loads(summary.read_text())["made"])
    columns = (pq.read_table(part, columns=["status"], partitioning=None).column(0) for part in parts(folder))
    return sum(pc.sum(pc.equal(column, "made")).as_py() for column in columns)


def made_views(folder: Path) -> Columns | None:
    """Return what the page needs of the made views, as `table` does."""
    found = table(folder, ["key", "level", "status", "shard", "offset", "length", "score"])
    if found is None:
        return None
    kept = found.pop("status") == "made"
    return {name: column[kept] for name, column in found.items()}


def table(folder: Path, names: Sequence[str]) -> Columns | None:
    """Return some columns of at most `MOST_PARTS` parts, spread evenly; None where there is no part.

    Raises:
        UserError: a part is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = spread(parts(folder), MOST_PARTS)
    pieces = []
    for part in chosen:
        try:
            pieces.append(pq.read_table(part, columns=list(names), partitioning=None))
        except pa.ArrowInvalid as error:
            raise UserError(f"{part} is damaged ({error}). Delete it and run its stage again.") from error
    if not pieces:
        return None
    whole = pa.concat_tables(pieces)
    return {name: np.asarray(whole.column(name).to_numpy(zero_copy_only=False)) for name in names}


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` items, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[i] for i in places]


def arrays(path: Path) -> Columns | None:
    """Return the arrays of an .npz file, or None where there is none. Nothing is unpickled.

    Raises:
        UserError: the file is damaged or holds Python objects.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run its stage again.") from error


def quarantined(run: RunFolder) -> list[tuple[str, str]]:
    """Return (key, reason) of every image that was set aside; a line cut short by a kill is left out."""
    found = []
    for line in run.quarantine_file.read_text().splitlines() if run.quarantine_file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append((str(row["key"]), str(row["reason"])))
    return found
