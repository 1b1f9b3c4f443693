"""Charts as inline SVG whose colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from genview.report.collect import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE, VIEWS, PLAIN, CARD = "#000001", "#000002", "#000003", "#000004", "#000005"
"""Stand-ins that `_svg` turns into the page's colours."""
RUNS = 7
"""How many colours tell runs apart, before lines are dashed to tell more apart."""
DASHES = {"solid": "solid", "dashed": (0, (4, 2.5)), "dotted": (0, (1, 1.6))}
PAGE_COLOURS = {
    INK: "var(--soft)",
    RULE: "var(--line)",
    VIEWS: "var(--views)",
    PLAIN: "var(--plain)",
    CARD: "var(--card)",
    **{f"#0001{number:02d}": f"var(--run-{number})" for number in range(RUNS)},
}
BINS = 24


def curves(own: Series, plain: Series, name: str, description: str, *, percent: bool = False) -> str:
    """Draw a measure over the steps, the baseline dashed; `percent` shows [0, 1] as 0…100 and starts at 0."""
    return _lines([(plain, PLAIN, "dashed"), (own, VIEWS, "solid")], name, description, percent)


def overlaid(lines: Sequence[Series], name: str, description: str, *, percent: bool = False) -> str:
    """Draw a measure of several runs over the steps, in the colours and dashes of `run_colour` and `dash`."""
    drawn = [(line, f"#0001{place % RUNS:02d}", dash(place)) for place, line in enumerate(lines)]
    return _lines(drawn, name, description, percent)


def run_colour(place: int) -> str:
    """Return the colour of run number `place` as CSS."""
    return f"var(--run-{place % RUNS})"


def dash(place: int) -> str:
    """Return how the line of run number `place` is drawn, in the words of CSS."""
    return [*DASHES][place // RUNS % len(DASHES)]


def _lines(lines: Sequence[tuple[Series, str, str]], name: str, description: str, percent: bool) -> str:
    figure, axes = _canvas()
    scale = 100.0 if percent else 1.0
    for line, colour, dashes in lines:
        marker = "o" if len(line.steps) <= 30 else None
        axes.plot(
            line.steps, scale * line.values, color=colour, linestyle=DASHES[dashes], marker=marker, markersize=3
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if percent:
        axes.yaxis.set_major_formatter("{x:g}%")
        axes.set_ylim(bottom=0)
    return _svg(figure, name, description)


def histogram(
    values: np.ndarray, span: tuple[float, float], name: str, description: str, mark: float | None = None
) -> str:
    """Draw how often values fall into equal bins of `span`; `mark` is a dashed line at one value."""
    figure, axes = _canvas()
    counts, edges = np.histogram(values, bins=BINS, range=span)
    axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.9, align="edge", color=VIEWS)
    if mark is not None:
        axes.axvline(mark, color=PLAIN, linestyle=(0, (4, 2.5)), linewidth=1.2)
    axes.set_xlim(*span)
    _count(axes)
    return _svg(figure, name, description)


def bars(labels: list[str], counts: list[int], name: str, description: str) -> str:
    """Draw one bar for each label, its count above it."""
    figure, axes = _canvas()
    axes.bar(range(len(labels)), counts, width=0.62, color=VIEWS)
    axes.set_xticks(range(len(labels)), labels)
    for place, count in enumerate(counts):
        axes.annotate(
            f"{count:,}",
            (place, count),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )
    axes.margins(y=0.12)
    _count(axes)
    return _svg(figure, name, description)


def spreads(
    labels: list[str], values: list[list[float]], name: str, description: str, mark: float | None = None
) -> str:
    """Draw five quantiles for each label: a line between the outer ones, a box between the inner, a middle bar.

    `mark` is a dashed line at one value.
    """
    figure, axes = _canvas()
    if mark is not None:
        axes.axhline(mark, color=PLAIN, linestyle=(0, (4, 2.5)), linewidth=1.2, zorder=1)
    for place, (lowest, low, middle, high, highest) in enumerate(values):
        axes.vlines(place, lowest, highest, color=INK, linewidth=1.2, zorder=2)
        axes.bar(place, high - low, width=0.5, bottom=low, color=VIEWS, zorder=3)
        axes.hlines(middle, place - 0.25, place + 0.25, color=CARD, linewidth=2, zorder=4)
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.margins(y=0.08)
    return _svg(figure, name, description)


def _canvas() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=INK, labelsize=10, length=0, pad=5)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _count(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _svg(figure: Figure, name: str, description: str) -> str:
    """Write as an SVG element without ids that could clash, addresses, or fonts and colours of its own."""
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg {box[0]} role="img" aria-label="{html.escape(description)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"\s*\n\s*", "\n", text)
