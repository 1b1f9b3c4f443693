"""The table of a study in the terminal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genview.cli.study import _show
from genview.report import Row
from genview.report.comparison import Difference


def test_long_names_are_folded_and_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name, gain = "views_of_a_generator_and_quality_weights_at_once", Difference(0.02, 0.01, 3)
    grid: Any = SimpleNamespace(axes=("method", "views"))
    _show(grid, [Row(("simsiam", name), "linear/top1", 3, 3, 0.5, 0.01, gain, "linear-1")], Path("out"))
    shown = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(cells[2].strip() for cells in shown) == name
    assert "…" not in "".join(map("".join, shown))
