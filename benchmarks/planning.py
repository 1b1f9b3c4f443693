"""Plan ten million views, merge their shards and open the store: how long it takes and how much memory.

    python benchmarks/planning.py [--rows N] [--quick] [--folder FOLDER]

Everything is made up: an analysis of N images with a view each, and the tables of N finished views without images,
so what is measured is the bookkeeping of the generate stage. Each step runs in a process of its own, whose peak of
resident memory is its own. `idle_mb` is what a process has after it has imported the package and nothing else. The
last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from genview.generators import GenerateSettings, Job, Plan, ViewTable, make_plan
from genview.generators.merge import merge, merged, unfinished
from genview.noise import Adaptive
from genview.store import write_table
from genview.store.table import Column

ROWS, QUICK = 10_000_000, 1_000_000
ANALYSED = 1024
"""Images in a part of the analysis, as the stage has it."""
WIDTH = 4
"""Of the embeddings: planning does not read them."""
ASKED = 10_000
"""Keys looked up in the opened store."""


def quiet(_what: str, _done: int, _total: int, _note: str) -> None:
    return


def key(i: int) -> str:
    return f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG"


def make_analysis(folder: Path, rows: int) -> None:
    """Write keys, ratios and embeddings of `rows` images."""
    for number, first in enumerate(range(0, rows, ANALYSED)):
        count = min(ANALYSED, rows - first)
        columns: dict[str, Column] = {
            "key": [key(i) for i in range(first, first + count)],
            "ratio": np.linspace(0, 1, count, dtype=np.float32),
            "embedding": np.zeros((count, WIDTH), np.float16),
        }
        write_table(folder / "analysis" / f"part-{number:05d}.parquet", columns)


def make_sidecars(folder: Path) -> None:
    """Write the tables of finished shards, and tars of no bytes."""
    plan = Plan.open(folder / "views")
    for shard, planned in enumerate(plan.planned()):
        count, sidecar = len(planned["key"]), plan.sidecar(shard)
        tar = f"{sidecar.stem}-{shard:016x}.tar"
        (sidecar.parent / tar).touch()
        columns: dict[str, Column] = {
            **planned,
            "status": ["made"] * count,
            "shard": [tar] * count,
            "shard_bytes": np.zeros(count, np.int64),
            "offset": np.arange(count, dtype=np.int64) * 100_000,
            "length": np.full(count, 99_000, np.int64),
            "score": np.linspace(-1, 1, count, dtype=np.float32),
            "diversity": np.full(count, np.nan, np.float32),
        }
        write_table(sidecar, columns)


def plan_all(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    job = Job(analysis=folder / "analysis", policy=Adaptive(), guidance=10.0, seed=0)
    plan = make_plan(job, GenerateSettings(), folder / "views", identity={}, tell=quiet)
    return {"rows": plan.views, "seconds": time.perf_counter() - start, "peak_mb": peak()}


def merge_all(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    bad = merge(Plan.open(folder / "views"), quiet)
    assert not bad
    return {"merge_seconds": time.perf_counter() - start, "merge_peak_mb": peak()}


def open_all(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    views = ViewTable(folder / "views")
    opened = time.perf_counter() - start
    asked = [key(i) for i in np.linspace(0, len(views) - 1, ASKED).astype(int)]
    start = time.perf_counter()
    assert views.missing([*asked, "absent"]) == 1
    missing = time.perf_counter() - start
    start = time.perf_counter()
    assert all(len(views.rows(name)) == 1 for name in asked)
    found = (time.perf_counter() - start) / ASKED
    return {"open_seconds": opened, "missing_seconds": missing, "find_ms": 1000 * found, "open_peak_mb": peak()}


def resume_all(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    plan = Plan.open(folder / "views")
    assert merged(plan)
    assert not unfinished(plan)
    return {"resume_seconds": time.perf_counter() - start}


def idle(_folder: Path) -> dict[str, float]:
    return {"idle_mb": peak()}


def peak() -> float:
    """Return the highest resident memory of this process so far, in MB of 10⁶ bytes.

    On Linux by /proc: what getrusage says includes the parent's, of which a process is a copy when it starts.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def alone(step: Callable[[Path], object], folder: Path) -> dict[str, float]:
    """Run a step in a process of its own and return what it measured."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, step, folder))
    process.start()
    theirs.close()
    measured = ours.recv()
    process.join()
    return {name: round(value, 4) for name, value in measured.items()}


def _send(pipe: Connection, step: Callable[[Path], object], folder: Path) -> None:
    pipe.send(step(folder) or {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows")
    parser.add_argument("--folder", type=Path, help="where to work; the system's temporary folder by default")
    given = parser.parse_args()
    rows = QUICK if given.quick else given.rows
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        make_analysis(folder, rows)
        steps: tuple[Callable[[Path], object], ...] = (plan_all, make_sidecars, merge_all, open_all, resume_all, idle)
        for step in steps:
            print(f"{step.__name__} …", flush=True)
            found |= alone(step, folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
