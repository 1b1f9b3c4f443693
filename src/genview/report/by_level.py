"""Weight and similarities of training pairs by the noise level of their view."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from genview.report import figures
from genview.report.collect import Columns, Material
from genview.report.section import Section, chart, missing
from genview.report.words import level_name

MOST_GROUPS = 6
SHARES = (5, 25, 50, 75, 95)
CHARTS = (
    ("weight", "Weight", "how much a pair counts; the line marks 1, the mean of a batch", 1.0),
    ("foreground", "Foreground similarity", "cosine of the foregrounds: high where the subject survived", None),
    ("background", "Background similarity", "cosine of the backgrounds: low where the view brings diversity", None),
)


def quality_by_level(material: Material) -> Section:
    """How the quality of the latest pairs is spread at each noise level."""
    title = "Quality by noise level"
    reading = (
        "Half of a level's pairs lie in its box, nine tenths between its ends; the line across is the median, and "
        "the number below is that of the pairs. Under 'none' both views come from the original. Where a higher level "
        "loses the subject, foreground similarity falls and so should the weight."
    )
    seen = material.weighed
    if seen is None:
        body = missing("pretrain", " when the experiment has <code>quality</code>")
        return Section("quality", title, reading, body)
    groups = grouped(seen)
    drawn = [
        chart(name, text, _drawn(column, {label: rows[column] for label, rows in groups.items()}, mark))
        for column, name, text, mark in CHARTS
    ]
    steps = seen["step"]
    note = (
        f"The latest {len(steps):,} of the pairs that were looked at, from step {steps.min():,} to {steps.max():,}."
    )
    return Section("quality", title, reading, f'<div class="charts">{"".join(drawn)}</div><p class="note">{note}</p>')


def grouped(seen: Columns) -> dict[str, Columns]:
    """Return the rows of each level by its name, the lowest first; more than `MOST_GROUPS` levels are put together.

    Levels are put together so that groups are equally large, but pairs of originals alone stay a group.
    """
    levels = seen["level"]
    known = np.unique(levels)
    if len(known) <= MOST_GROUPS:
        return {_short(int(level)): _of(seen, levels == level) for level in known}
    generated = levels[levels >= 0]
    shares = np.linspace(0, 1, MOST_GROUPS - 1, endpoint=False)
    starts = np.unique(np.quantile(generated, shares, method="higher")).tolist()
    groups = {_short(int(level)): _of(seen, levels == level) for level in known[known < 0]}
    for low, high in pairwise([*starts, np.inf]):
        inside = (levels >= low) & (levels < high)
        top = levels[inside].max()
        groups[f"{low}" if top == low else f"{low}–{top}"] = _of(seen, inside)
    return groups


def _of(seen: Columns, chosen: np.ndarray) -> Columns:
    return {name: values[chosen] for name, values in seen.items()}


def _short(level: int) -> str:
    return level_name(level).removeprefix("level ").removesuffix(" level").replace("not generated", "none")


def _drawn(column: str, values: dict[str, np.ndarray], mark: float | None) -> str:
    fine = {label: rows[np.isfinite(rows)].astype(float) for label, rows in values.items()}
    fine = {label: rows for label, rows in fine.items() if len(rows)}
    spreads = [np.percentile(rows, SHARES).tolist() for rows in fine.values()]
    said = "; ".join(
        f"{label}: median {spread[2]:.3f}, {len(rows):,} pairs"
        for (label, rows), spread in zip(fine.items(), spreads, strict=True)
    )
    labels = [f"{label}\n{len(rows):,}" for label, rows in fine.items()]
    return figures.spreads(labels, spreads, f"{column} by level", f"{column} by level. {said}", mark)
