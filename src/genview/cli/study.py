"""The verb `study`: a grid of experiments and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from genview.cli.screen import FOLLOWS, TOGETHER, Bars
from genview.errors import UserError

if TYPE_CHECKING:
    from genview.experiment import Grid
    from genview.launch import Launcher
    from genview.report import Row


def do_study(file: Path, out: Path, sets: list[str], launcher: Launcher | None) -> None:
    """Do the runs of a study and show its table; without a launcher, show the table of what is there.

    Raises:
        UserError: the folder holds runs of other settings, or none where only their table is wanted. Or see
            `run_study`; then the table is shown all the same.
    """
    from genview.experiment import load_study, refuse_others, run_study
    from genview.report import write_study

    if TOGETHER:
        raise UserError(
            "torchrun starts processes that train together, and the runs of a study are trained each by one process. "
            "Give --launcher local, or start several processes with this command, by SLURM with --launcher index."
        )
    grid = load_study(file, sets)
    refuse_others(grid, out)
    if launcher is None:
        if not (out / "runs").is_dir():
            raise UserError(f"{out} holds no runs of a study. Name the right --out, or leave --table out.")
        _show(grid, write_study(grid.design(out), out), out)
        return
    try:
        with Bars() as bars:
            run_study(grid, out, launcher, bars.tell)
    finally:
        if not FOLLOWS and (out / "table.csv").exists():
            _show(grid, write_study(grid.design(out), out), out)


def check_study(file: Path, sets: list[str]) -> None:
    """Print a resolved study, its runs, and what they will cost."""
    import typer

    from genview.experiment import load_study, study_cost, to_yaml

    grid = load_study(file, sets)
    typer.echo(to_yaml(grid.study))
    for line in study_cost(grid):
        typer.echo(line)


def _show(grid: Grid, rows: list[Row], out: Path) -> None:
    """Print the final scores, or the online ones where nothing else was asked for, and where the rest is."""
    from rich.markup import escape
    from rich.table import Column, Table

    from genview.report.comparison import by_measure
    from genview.report.tables import COLUMNS, cells, enough

    console, groups = Console(highlight=False), by_measure(rows)
    for group in [group for group in groups if not group[0].measure.startswith("online/")] or groups:
        numbers = [Column(name, no_wrap=True) for name in COLUMNS]
        names = [Column(escape(name), overflow="fold") for name in grid.axes]  # their ends tell them apart
        table = Table(*names, *numbers, title=escape(group[0].title), title_justify="left")
        table.caption, table.caption_justify = enough(group) or None, "left"
        for row in group:
            table.add_row(*map(escape, row.variants), *map(escape, cells(row)))
        console.print(table)
    console.print(f"Table: {out / 'table.md'}\nPage: {out / 'report.html'}", soft_wrap=True, markup=False)
