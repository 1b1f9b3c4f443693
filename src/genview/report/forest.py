"""The figure of a study: a forest plot, one panel for each measure, readable in grey and in print."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from genview.report.comparison import LEVEL, Design, Row, by_measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

PANELS = 4
"""Measures drawn; the table has all."""
INK, LIGHT = "#111111", "#888888"
DOTS = 150
"""An inch."""
LETTERS = 60
"""In a line of words, before they go on in the next."""
LEADING = 0.16
"""Inches that each further line takes."""


def forest(design: Design, rows: Sequence[Row]) -> bytes | None:
    """Draw each difference to the reference with its interval as a PNG; None where there is no difference yet.

    A hollow mark without a line is a difference of one seed, which has no interval.
    """
    drawn = [found for group in by_measure(rows) if (found := [row for row in group if row.difference])]
    shown = _leading(drawn)[:PANELS]
    if not shown:
        return None
    below = f"points more than {design.axes[design.axis]} = {design.reference}, with {LEVEL:.0%} interval"
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may have letters that the font lacks; the page's tables show them.
        warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib currently does not support")
        _drawing(shown, below).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawing(shown: Sequence[list[Row]], below: str) -> Figure:
    from matplotlib.figure import Figure

    lines = list(dict.fromkeys(row.variants for group in shown for row in group))
    figure = Figure(dpi=DOTS, layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, shown, strict=True):
        _panel(axes, group, lines)
    panels[0].set_yticks(range(len(lines)), [_words(" / ".join(variants)) for variants in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    foot = figure.supxlabel(_words(below), fontsize=9)
    figure.set_size_inches(_size(panels, foot))
    return figure


def _size(panels: Sequence[Axes], foot: Text) -> tuple[float, float]:
    """Width and height in inches that leave room for all words, however long."""
    names = panels[0].get_yticklabels()
    panel = max(2.6, 0.3 + _width(axes.title for axes in panels))
    width = max(2.0, 0.4 + _width(names)) + panel * len(panels)
    further = max(name.get_text().count("\n") for name in names)
    height = 1.3 + (0.3 + LEADING * further) * len(names) + LEADING * foot.get_text().count("\n")
    return max(width, 0.3 + _width([foot])), height


def _width(texts: Iterable[Text]) -> float:
    return max(text.get_window_extent().width for text in texts) / DOTS


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


def _words(text: str) -> str:
    """Break text into lines that a page has room for."""
    return _plain(textwrap.fill(text, LETTERS))


def _plain(text: str) -> str:
    """Keep matplotlib from taking what stands between dollars for a formula."""
    return text.replace("$", r"\$")
