"""What the page needs of a run folder, read sparingly; what is missing is None: a run may be half done."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from genview.errors import UserError
from genview.store import Measure, RunFolder, read_results, read_table

MOST_PARTS = 50
MOST_POINTS = 300
VIEWS = ("key", "level", "status", "shard", "offset", "length", "score", "diversity")
Columns = dict[str, np.ndarray]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """A final score in [0, 1] of the last backbone.

    `baseline` is that of the same budget without views and weights, `best` that of the backbone with the best score
    on held-out training images; None where there is none. `protocol` names what was done, with its version.
    """

    name: str
    value: float
    baseline: float | None = None
    best: float | None = None
    protocol: str = ""

    @property
    def difference(self) -> float | None:
        """Value minus baseline."""
        return None if self.baseline is None else self.value - self.baseline


def results(run: RunFolder) -> list[Result]:
    """Return every measure of the evaluations of a run, in their order, beside those of its baseline.

    They are those of the last backbone, or of the one that was given where none was trained.

    Raises:
        UserError: a result is damaged.
    """
    best, plain = final(run, "best"), final(run.baseline)
    last = read_results(run.evaluation, "last") or read_results(run.evaluation, "given")
    return [
        Result(name, value, plain.get(name), best.get(name), found.protocol)
        for found in last
        for name, value in found.measures
    ]


def final(run: RunFolder, backbone: str = "last") -> dict[str, float]:
    """Return every measure of the evaluations of a run's last or best backbone, by name, in their order.

    Raises:
        UserError: a result is damaged.
    """
    return {name: value for found in read_results(run.evaluation, backbone) for name, value in found.measures}


@dataclass(frozen=True)
class Series:
    """Steps and values of one measure, equally long, in the order of steps; scores have a `protocol`."""

    steps: np.ndarray
    values: np.ndarray
    protocol: str = ""


def series(measures: Sequence[Measure], prefix: str) -> Series:
    """Return the finite values of the first measure whose name starts with `prefix`.

    More than `MOST_POINTS` are averaged in equal runs of neighbours.
    """
    first = next((m for m in measures if m.name.startswith(prefix)), None)
    points = sorted((m.step, m.value) for m in measures if first and m.name == first.name and np.isfinite(m.value))
    pieces = np.array_split(np.array(points, dtype=float).reshape(-1, 2), max(1, min(len(points), MOST_POINTS)))
    means = np.array([piece.mean(axis=0) for piece in pieces if len(piece)]).reshape(-1, 2)
    return Series(means[:, 0], means[:, 1], first.protocol if first else "")


@dataclass(frozen=True)
class LeftOut:
    """How many planned views were dropped, and how many failed, being black or unreadable.

    `filter` is the filter that dropped views (policy, lowest, highest, tries), if there is one; `below` and `above`
    count views with a lower and a higher score than it allows, among those of at most `MOST_PARTS` parts.
    """

    dropped: int = 0
    failed: int = 0
    below: int = 0
    above: int = 0
    filter: dict[str, Any] | None = None


@dataclass(frozen=True)
class Material:
    """All that a page is made from. Tables and arrays are None where their stage has not run.

    `views`: columns key, level, shard, offset, length, score, diversity of the made views of at most `MOST_PARTS`
    parts; `ratios` too. `generated` counts made views, `left_out` the others.
    `maps`: the arrays of analysis/examples.npz; `pictured` and `latest`: the tables that training keeps of pairs;
    `portrait` and `predictions`: those that evaluation keeps of test images.
    """

    run: RunFolder
    measures: list[Measure]
    plain_measures: list[Measure]
    summary: dict[str, object] | None
    ratios: np.ndarray | None
    maps: Columns | None
    views: Columns | None
    pictured: Columns | None
    latest: Columns | None
    portrait: Columns | None
    predictions: Columns | None
    analysed: int
    generated: int
    left_out: LeftOut
    quarantined: list[tuple[str, str]]
    experiment: str | None

    @property
    def results(self) -> list[Result]:
        """Final scores beside the baseline's."""
        return results(self.run)

    @property
    def weighed(self) -> Columns | None:
        """The latest pairs where their quality was measured."""
        return self.latest if self.latest is not None and np.isfinite(self.latest["foreground"]).any() else None

    @property
    def treatment(self) -> str:
        """What this run has that its baseline lacks, in words; empty where it has nothing more."""
        weighted = any(m.name.startswith("quality/") for m in self.measures)
        parts = ["generated views"] * (self.views is not None)
        parts += ["other images"] * self.run.external.exists() + ["quality weights"] * weighted
        return " and ".join(parts)


def collect(run: RunFolder) -> Material:
    """Read what there is in a run folder.

    Raises:
        UserError: a file is damaged.
    """
    ratios = table(run.analysis, ["ratio"])
    counts, views = statuses(run.views), table(run.views, VIEWS)
    return Material(
        run=run,
        measures=run.measures(),
        plain_measures=run.baseline.measures(),
        summary=record(run.analysis / "summary.json"),
        ratios=None if ratios is None else ratios["ratio"].astype(np.float64),
        maps=arrays(run.analysis / "examples.npz"),
        views=None if views is None else _made(views),
        pictured=columns(run.pairs / "pictured.parquet"),
        latest=columns(run.pairs / "latest.parquet"),
        portrait=columns(run.evaluation / "portrait.parquet"),
        predictions=columns(run.evaluation / "predictions.parquet"),
        analysed=rows(run.analysis),
        generated=counts["made"],
        left_out=_left_out(run.views, counts, views),
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


def statuses(folder: Path) -> Counter[str]:
    """Count views by status: by the summary where the stage has finished, by the finished shards otherwise."""
    summary = record(folder / "summary.json")
    if summary is not None:
        return Counter({name: int(summary.get(name, 0)) for name in ("made", "dropped", "failed")})
    counts = Counter[str]()
    for part in parts(folder):
        counts.update(read_table(part, ["status"])["status"].tolist())
    return counts


def _made(views: Columns) -> Columns:
    kept = views["status"] == "made"
    return {name: column[kept] for name, column in views.items() if name != "status"}


def _left_out(folder: Path, counts: Counter[str], views: Columns | None) -> LeftOut:
    chosen = (record(folder / "plan" / "plan.json") or {}).get("filter")
    if chosen is None or views is None:
        return LeftOut(counts["dropped"], counts["failed"])
    scores = views["score"][views["status"] == "dropped"]
    below, above = (scores < chosen["lowest"]).sum(), (scores > chosen["highest"]).sum()
    return LeftOut(counts["dropped"], counts["failed"], int(below), int(above), chosen)


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


def record(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run its stage again.") from error


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


def columns(path: Path) -> Columns | None:
    """Return the columns of a table, or None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    return read_table(path) if path.exists() else None


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
