"""Level, guidance, prompt and negative prompt of single images or views, from a file of the user's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from genview.errors import UserError, nearest
from genview.noise import HIGHEST


@dataclass(frozen=True)
class Condition:
    """What a row of the file asks for; None where its cell is blank."""

    level: int | None = None
    guidance: float | None = None
    prompt: str | None = None
    negative: str | None = None

    def over(self, other: Condition) -> Condition:
        """Return this with its blanks filled by `other`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(other, **given)


COLUMNS = ("key", "draw", *(f.name for f in fields(Condition)))
ALL_DRAWS = -1


@dataclass(frozen=True)
class Conditions:
    """Conditions by key and draw (`ALL_DRAWS` for rows without one); the whole file is held in memory."""

    file: Path
    columns: frozenset[str] = frozenset()
    of: Mapping[str, Mapping[int, Condition]] = field(default_factory=dict)

    @property
    def with_texts(self) -> bool:
        """Whether the file speaks of prompts at all."""
        return bool(self.columns & {"prompt", "negative"})

    def condition(self, key: str, draw: int) -> Condition:
        """Return what the view `draw` of `key` is asked for: its own row's cells before those of all draws."""
        rows = self.of.get(key, {})
        return rows.get(draw, Condition()).over(rows.get(ALL_DRAWS, Condition()))

    def places(self, keys: np.ndarray) -> Iterator[int]:
        """Yield where in `keys` there is one that the file names."""
        return (i for i, key in enumerate(keys) if key in self.of)


def read_conditions(file: Path, draws: int) -> Conditions:
    """Read a CSV with a header: `key`, and any of draw, level, guidance, prompt, negative.

    A row without draw holds for all draws of its image; a blank cell asks for nothing.

    Raises:
        UserError: the file cannot be read, a column is unknown or missing, a cell is out of range, or two rows
            speak of the same view.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = _checked_columns(file, reader.fieldnames or [])
            table: dict[str, dict[int, Condition]] = {}
            for row in reader:
                draw, condition = _read_row(row, draws, f"Line {reader.line_num} of {file}")
                if draw in table.setdefault(row["key"], {}):
                    raise UserError(f"Line {reader.line_num} of {file} speaks of a view of '{row['key']}' once more.")
                table[row["key"]][draw] = condition
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV of conditions: {error}") from error
    return Conditions(file, columns, table)


def _checked_columns(file: Path, names: object) -> frozenset[str]:
    columns = [str(name) for name in names] if isinstance(names, list | tuple) else []
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"{file} has a column '{name}'; known are {', '.join(COLUMNS)}.{nearest(name, COLUMNS)}")
    if "key" not in columns or len(set(columns)) < len(columns):
        raise UserError(f"{file} needs a header with a column 'key' and no column twice; it has {columns}.")
    return frozenset(columns)


def _read_row(row: Mapping[str | None, str | None], draws: int, where: str) -> tuple[int, Condition]:
    if None in row or None in row.values():
        raise UserError(f"{where} has not as many cells as the header; put cells with commas in double quotes.")
    cells = {name: cell for name, cell in row.items() if cell and cell.strip()}
    try:
        draw = int(cells.get("draw") or ALL_DRAWS)
        level = int(cells["level"] or 0) if "level" in cells else None
        guidance = float(cells["guidance"] or 0) if "guidance" in cells else None
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error
    if "draw" in cells and not 0 <= draw < draws:
        raise UserError(f"{where}: there is no draw {draw}; generate.draws: {draws} has 0 to {draws - 1}.")
    if level is not None and not 0 <= level <= HIGHEST:
        raise UserError(f"{where}: a level is a whole number from 0 to {HIGHEST}, not {level}.")
    if guidance is not None and not np.isfinite(guidance):
        raise UserError(f"{where}: guidance is a finite number, not {guidance}.")
    return draw, Condition(level, guidance, cells.get("prompt"), cells.get("negative"))
