"""Stores of views that nothing disturbed, and plans of the same views to disturb."""

from __future__ import annotations

from pathlib import Path

from echo import Echo, analysed, files, make, planned, quiet
from genview.generators import GenerateSettings, Maker, Plan, ViewTable
from genview.generators.generate import finish, in_this_process

SETTINGS = GenerateSettings(shard=4, draws=2)
COUNT = 24


def undisturbed_store(folder: Path) -> dict[str, bytes]:
    analysed(folder / "analysis", COUNT)
    make(folder / "views", SETTINGS, batch=1)
    return files(folder / "views")


def unmade_plan(folder: Path) -> Plan:
    """A plan nothing of which is made."""
    analysed(folder / "analysis", COUNT)
    return planned(folder / "views", SETTINGS)


def finished(plan: Plan) -> dict[str, bytes]:
    """Finish the store and return its files."""
    finish(plan, in_this_process(Maker(Echo(), 1)), quiet)
    table = ViewTable(plan.folder)
    assert len(table) == table.planned == COUNT * 2
    return files(plan.folder)
