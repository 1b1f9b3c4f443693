"""What there is to see of a training that is going on, read from the end of its measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
