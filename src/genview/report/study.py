"""What a study leaves beside its runs: its results and table as files, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genview.report.comparison import Design, Row, compared, scores
from genview.report.forest import forest
from genview.report.tables import latex, markdown, results_csv, table_csv
from genview.store import write_bytes


def write_tables(design: Design, out: Path) -> list[Row]:
    """Write results.csv, table.csv, table.md and table.tex to `out` from the runs that are trained; return the rows.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    found = {entry: scores(entry.run) for entry in design.entries}
    rows = compared(design, found)
    for name, text in (
        ("results.csv", results_csv(design, found)),
        ("table.csv", table_csv(design, rows)),
        ("table.md", markdown(design, rows, out.resolve().name)),
        ("table.tex", latex(design, rows)),
    ):
        write_bytes(out / name, text.encode("utf-8", "replace"))
    return rows


def write_figure(design: Design, rows: Sequence[Row], out: Path) -> None:
    """Write figure.png to `out`, where there is a difference to draw.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    if (drawing := forest(design, rows)) is not None:
        write_bytes(out / "figure.png", drawing)
