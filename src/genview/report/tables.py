"""The table of a study as CSV, Markdown and LaTeX; numbers in percent with one decimal, except in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from genview.report.comparison import (
    LEVEL,
    MOST_SEEDS,
    Design,
    Difference,
    Entry,
    Row,
    Score,
    by_measure,
    pooled,
    seeds_for,
)
from genview.report.words import points

COLUMNS = ("seeds", "mean ± deviation", "difference", f"{LEVEL:.0%} interval")
LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
PAIRED = (
    "Differences are paired by seed, with the interval of Student's t; one seed gives none. "
    "Intervals are not corrected for their number."
)

POINT = 0.01


def enough(rows: Sequence[Row]) -> str:
    """Say how many seeds it would take to tell a difference of one point in a table; empty where no seeds can be
    compared.
    """
    if (deviation := pooled(rows)) is None:
        return ""
    seeds = seeds_for(deviation, POINT)
    said = f"{seeds} seeds" if seeds < MOST_SEEDS else f"{seeds} seeds or more"
    return (
        f"Differences deviate by {100 * deviation:.1f} points from seed to seed; for an interval of ±1 point, {said}."
    )


def results_csv(design: Design, found: Mapping[Entry, Mapping[str, Score]]) -> str:
    """One line for each run and measure; values are shares in [0, 1]. The protocol is last, where old files end."""
    rows = (
        [*entry.variants, entry.seed, measure, score.value, score.protocol]
        for entry in design.entries
        for measure, score in found[entry].items()
    )
    return _csv([*design.axes, "seed", "measure", "value", "protocol"], rows)


def table_csv(design: Design, rows: Iterable[Row]) -> str:
    """One line for each measure and combination of variants; values are shares in [0, 1], what is absent is empty."""
    header = ["measure", *design.axes, "seeds", "planned", "mean", "deviation"]
    header += ["pairs", "difference", "low", "high", "protocol"]
    return _csv(header, ([*_start(row), *_gap(row.difference), row.protocol] for row in rows))


def markdown(design: Design, rows: Iterable[Row], title: str) -> str:
    """A table for each measure."""
    head = [*map(_marked, design.axes), *COLUMNS]
    parts = [f"# {_marked(title)}", "", f"Compared with {_marked(_reference(design))}, in percent. {PAIRED}"]
    for group in by_measure(rows):
        parts += ["", f"## {_marked(group[0].title)}", "", *_said(enough(group)), _line(head)]
        parts += [_line(["---"] * len(head))]
        parts += [_line([*map(_marked, row.variants), *cells(row)]) for row in group]
    return "\n".join(parts) + "\n"


def latex(design: Design, rows: Iterable[Row]) -> str:
    """A tabular for each measure, which needs no package; its last line names the protocol."""
    parts = [f"% Compared with {_reference(design)}, in percent. {PAIRED}"]
    for group in by_measure(rows):
        head = [*map(_escaped, design.axes), *(_escaped(name).replace("±", r"$\pm$") for name in COLUMNS)]
        body = [[*map(_escaped, row.variants), *map(_math, cells(row))] for row in group]
        parts += ["", f"% {group[0].measure}", rf"\begin{{tabular}}{{{'l' * len(design.axes)}rrrr}}", r"\hline"]
        parts += [_row(head), r"\hline", *map(_row, body)]
        parts += [r"\hline", *_foot(group[0].protocol, len(head)), r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def cells(row: Row) -> list[str]:
    """Seeds, mean ± deviation, difference and interval of a row in words; what is absent is empty."""
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.1f}"
    mean = "" if row.mean is None else f"{100 * row.mean:.1f}{spread}"
    gap, interval = "", ""
    if row.difference is not None:
        gap = points(row.difference.mean)
        if (ends := row.difference.interval) is not None:
            interval = f"[{points(ends[0])}, {points(ends[1])}]"
    return [f"{row.count}/{row.planned}", mean, gap, interval]


def _start(row: Row) -> list[object]:
    return [row.measure, *row.variants, row.count, row.planned, row.mean, row.deviation]


def _gap(difference: Difference | None) -> Sequence[object]:
    if difference is None:
        return [None] * 4
    return [difference.count, difference.mean, *(difference.interval or (None, None))]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _reference(design: Design) -> str:
    return f"{design.axes[design.axis]} = {design.reference}"


def _row(cells: Sequence[str]) -> str:
    """A row of LaTeX. An empty group keeps the row's end before it from taking a star or bracket for its own."""
    line = " & ".join(cells) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line


def _foot(protocol: str, columns: int) -> list[str]:
    return [rf"\multicolumn{{{columns}}}{{l}}{{Protocol {_escaped(protocol)}}} \\"] if protocol else []


def _said(text: str) -> list[str]:
    """A paragraph, if there is anything to say."""
    return [text, ""] if text else []


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _marked(text: str) -> str:
    """Let Markdown take a user's words for words."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|~" else letter for letter in text)


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _math(cell: str) -> str:
    """Set numbers as mathematics: a true minus, a true ±."""
    if not cell or "/" in cell:
        return cell
    return "$" + cell.replace("−", "-").replace(" ± ", r" \pm ") + "$"
