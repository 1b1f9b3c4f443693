"""The figure of a study: a forest plot, one panel for each measure, readable in grey and in print."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genview.report.comparison import LEVEL, Design, Row, by_measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 4
"""Measures drawn; the table has all."""
INK, LIGHT = "#111111", "#888888"


def forest(design: Design, rows: Sequence[Row]) -> bytes | None:
    """Draw each difference to the reference with its interval as a PNG; None where there is no difference yet.

    A hollow mark without a line is a difference of one seed, which has no interval.
    """
    from matplotlib.figure import Figure

    drawn = [found for group in by_measure(rows) if (found := [row for row in group if row.difference])]
    shown = _leading(drawn)[:PANELS]
    if not shown:
        return None
    lines = list(dict.fromkeys(row.variants for group in shown for row in group))
    size = (2.0 + 2.6 * len(shown), 1.3 + 0.3 * len(lines))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, shown, strict=True):
        _panel(axes, group, lines)
    panels[0].set_yticks(range(len(lines)), [_plain(" / ".join(variants)) for variants in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    figure.supxlabel(
        _plain(f"points more than {design.axes[design.axis]} = {design.reference}, with {LEVEL:.0%} interval"),
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _leading(groups: Sequence[list[Row]]) -> list[list[Row]]:
    """Put the first measure of each evaluation before all second ones, and so on."""
    kinds = [group[0].measure.partition("/")[0] for group in groups]
    order = sorted(range(len(groups)), key=lambda n: kinds[:n].count(kinds[n]))
    return [groups[n] for n in order]


def _panel(axes: Axes, rows: Sequence[Row], lines: Sequence[tuple[str, ...]]) -> None:
    axes.axvline(0, color=LIGHT, linewidth=1, linestyle=(0, (4, 2.5)))
    for row in rows:
        assert row.difference is not None
        place, mean, half = lines.index(row.variants), 100 * row.difference.mean, row.difference.half
        filled = half is not None
        if half is not None:
            axes.hlines(place, mean - 100 * half, mean + 100 * half, color=INK, linewidth=1.4)
        axes.plot(mean, place, marker="o", markersize=5, color=INK, markerfacecolor=INK if filled else "white")
    axes.set_title(_plain(f"{rows[0].measure}\n{rows[0].protocol}"), fontsize=9)
    axes.tick_params(labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _plain(text: str) -> str:
    """Keep matplotlib from taking what stands between dollars for a formula."""
    return text.replace("$", r"\$")
