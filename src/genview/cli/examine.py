"""The verb `evaluate` for a backbone that was pretrained elsewhere."""

from __future__ import annotations

from pathlib import Path

from genview.cli.screen import Bars


def do_examine(file: Path, out: Path, sets: list[str]) -> None:
    """Judge a backbone that was pretrained elsewhere."""
    from genview.experiment import Examination, examine, load

    with Bars() as bars:
        examine(load(Examination, file, sets), out, bars.tell)


def check_examination(file: Path, sets: list[str]) -> None:
    """Print what is resolved, and what it will cost."""
    import typer

    from genview.experiment import Examination, examination_cost, load, to_yaml

    examination = load(Examination, file, sets)
    typer.echo(to_yaml(examination))
    for line in examination_cost(examination):
        typer.echo(line)
