"""What a study leaves beside its runs: its results and table as files, a figure and a page."""

from __future__ import annotations

from pathlib import Path

from genview.report.comparison import Design, Row, compared, scores
from genview.report.forest import forest
from genview.report.study_page import study_page
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


def write_study(design: Design, out: Path) -> list[Row]:
    """Write the tables, report.html and, where there is a difference to draw, figure.png to `out`; return the rows.

    A figure of an earlier state goes where there is none to draw any more.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    rows = write_tables(design, out)
    if (drawing := forest(design, rows)) is not None:
        write_bytes(out / "figure.png", drawing)
    else:
        (out / "figure.png").unlink(missing_ok=True)
    write_bytes(out / "report.html", study_page(design, rows, drawing, out).encode("utf-8", "replace"))
    return rows
