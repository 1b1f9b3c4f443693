"""Names, numbers and outcomes in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from genview.noise import UNKNOWN
from genview.report.collect import LeftOut, Result, Series

MOST_QUOTED = 3
"""Scores in the sentence that says how a run ended."""


def run_name(root: Path) -> str:
    """Return how a page calls the run in this folder: by its variants and its seed where it lies in a study."""
    return " / ".join(place_in_study(root)) or root.resolve().name


def place_in_study(root: Path) -> tuple[str, ...]:
    """Return the folders of the variants and of the seed of a run in a study; nothing for any other run.

    The seed is asked for because a file study.yaml may also lie beside runs that are on their own.
    """
    root = root.resolve()
    for runs in root.parents[1:]:
        if runs.name == "runs" and (runs.parent / "study.yaml").exists() and re.fullmatch(r"seed-\d+", root.name):
            return root.relative_to(runs).parts
    return ()


def outcome(results: Sequence[Result], treatment: str) -> str:
    """Say in one sentence how the run ended: the first score of each evaluation beside the baseline's."""
    kinds = {result.name.partition("/")[0]: result for result in reversed(results)}
    chosen = [result for result in results if result in kinds.values()][:MOST_QUOTED]
    if not chosen:
        return "The backbone of this run has not been scored yet."
    start = f"With {treatment}" if treatment else "Without generated views or quality weights"
    scores = " and ".join(f"{percent(r.value)} in {label(r.name)}" for r in chosen)
    gains = [points(r.difference) for r in chosen if r.difference is not None]
    end = f": {' and '.join(gains)} points against the same budget without" if len(gains) == len(chosen) else ""
    return f"{start} the frozen backbone reaches {scores}{end}."


def label(name: str) -> str:
    """Return a measure's name in words: 'knn/top1@k=20' is 'kNN top-1 (k = 20)'."""
    kind, _, rest = name.partition("/")
    score, _, setting = rest.partition("@")
    words = {"knn": "kNN", "linear": "linear probe"}.get(kind, kind)
    return f"{words} {score.replace('top', 'top-')}" + (f" ({setting.replace('=', ' = ')})" if setting else "")


def level_name(level: int) -> str:
    """Return a noise level in words."""
    return {UNKNOWN: "unknown level", -1: "not generated"}.get(level, f"level {level}")


def left_out(found: LeftOut) -> str:
    """Say in one sentence how many views were left out, and why; empty where none was."""
    reasons = []
    if found.dropped and found.filter is not None:
        again = f"redraws: {found.filter['tries']}; " if found.filter["policy"] == "redraw" else ""
        sides = f"{found.below:,} below {found.filter['lowest']:g}, {found.above:,} above {found.filter['highest']:g}"
        sample = "" if found.below + found.above == found.dropped else f" of {found.below + found.above:,} looked at"
        reasons.append(f"{found.dropped:,} dropped by the filter ({again}similarity{sample}: {sides})")
    elif found.dropped:
        reasons.append(f"{found.dropped:,} dropped")
    if found.failed:
        reasons.append(f"{found.failed:,} failed (black in full precision, or no readable file)")
    return f"Views left out: {' and '.join(reasons)}." if reasons else ""


def percent(value: float) -> str:
    """Return a share in [0, 1] as a percentage with one decimal."""
    return f"{100 * value:.1f}%"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (name, text) rows: {'a': {'b': 1.5}} is [('a · b', '1.5')]."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{name} · {key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, " × ".join(text for inner in value for _, text in flat(inner)))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]


def span(seconds: float) -> str:
    """Return a duration in the unit that suits."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def with_protocols(text: str, shown: Sequence[Series]) -> str:
    """Add to what a chart shows the protocols of its scores, if they are scores."""
    return ", ".join([text, *sorted({f"protocol {one.protocol}" for one in shown if one.protocol})])
