"""What there is to see of trainings while they go on, one or those of a study: read from their measures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genview.report.words import span
from genview.store import Measure, RunFolder

BARS = "▁▂▃▄▅▆▇█"
POINTS = 32


@dataclass(frozen=True)
class Curve:
    """The latest value of a measure in words, and a line of its latest `POINTS` values."""

    name: str
    step: int
    shown: str
    line: str


def watched(run: RunFolder) -> list[Curve]:
    """Return the measures of a run's training, in the order in which they are first met."""
    found: dict[str, list[Measure]] = {}
    for measure in run.latest():
        if measure.name.startswith(("train/", "fit/", "quality/", "online/")):
            found.setdefault(measure.name, []).append(measure)
    return [
        Curve(name, rows[-1].step, _in_words(name, rows[-1].value), _line([row.value for row in rows[-POINTS:]]))
        for name, rows in found.items()
    ]


@dataclass(frozen=True)
class Standing:
    """How a run of a study stands: its latest step, the time left in words, the seconds since its latest measure."""

    name: str
    state: Literal["waiting", "begun", "failed", "finished"]
    step: int = 0
    left: str = ""
    silence: float = 0.0


def standings(study: Path) -> list[Standing]:
    """Return how each run in the folder of a study stands, by name."""
    folders = sorted(path.parent for path in (study / "runs").rglob("experiment.yaml"))
    return [_standing(folder.relative_to(study / "runs").as_posix(), RunFolder(folder)) for folder in folders]


def _standing(name: str, run: RunFolder) -> Standing:
    if run.finished.exists():
        return Standing(name, "finished")
    if run.failure.exists():
        return Standing(name, "failed")
    measures = run.latest(16_384)
    if not measures:
        return Standing(name, "waiting")
    left = [span(m.value) for m in measures if m.name == "train/seconds_left"]
    silence = time.time() - run.measures_file.stat().st_mtime
    return Standing(name, "begun", measures[-1].step, left[-1] if left else "", silence)


def _in_words(name: str, value: float) -> str:
    if name.endswith("seconds_left"):
        return span(value)
    if name.endswith("waiting") or "top1" in name:
        return f"{value:.1%}"
    return f"{value:.4g}"


def _line(values: list[float]) -> str:
    """Draw values as bars from the lowest to the highest of them; what is not finite is a cross."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "×" * len(values)
    low, high = min(finite), max(finite)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] if math.isfinite(value) else "×" for value in values)
