"""Damaged and lost files of a store are made anew, byte for byte, or named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from echo import Echo, planned, quiet
from genview.errors import UserError
from genview.generators import Maker, Plan, ViewTable
from genview.generators.generate import finish, in_this_process
from genview.generators.merge import merge, unfinished
from genview.generators.plan import Tell
from genview.generators.shard import run_shard
from genview.store import read_table, write_table
from made_stores import SETTINGS, finished, undisturbed_store, unmade_plan


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed_store(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return unmade_plan(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def shard_of(plan: Plan, number: int) -> Path:
    return next(plan.folder.glob(f"part-{number:05d}-*.tar"))


@pytest.mark.parametrize("damage", [cut, emptied, Path.unlink], ids=["cut", "emptied", "gone"])
@pytest.mark.parametrize("what", ["tar", "sidecar", "tar of a merged store"])
def test_a_damaged_shard_is_made_anew(
    damage: Callable[[Path], None], what: str, plan: Plan, undisturbed: dict[str, bytes]
) -> None:
    in_this_process(Maker(Echo(), 1))(plan, unfinished(plan), quiet)
    if what == "tar of a merged store":
        assert merge(plan, quiet) == []
    damage(plan.sidecar(3) if what == "sidecar" else shard_of(plan, 3))
    assert finished(plan) == undisturbed


def test_a_cut_shard_of_a_merged_store_is_a_clear_error_where_it_is_read(plan: Plan) -> None:
    finished(plan)
    for number in range(len(plan)):
        emptied(shard_of(plan, number))
    with pytest.raises(UserError, match="cut short: run `genview generate`"):
        ViewTable(plan.folder).view(0)


def test_half_written_files_are_not_taken_for_whole_ones(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 1, Maker(Echo(), 1))
    whole = plan.sidecar(1).read_bytes()
    plan.sidecar(1).unlink()
    plan.sidecar(1).with_name(f".{plan.sidecar(1).name}.there-1-ab.part").write_bytes(whole[: len(whole) // 2])
    shard_of(plan, 1).with_name(".part-00002.tar.there-1-cd.part").write_bytes(b"half")
    assert 1 in unfinished(plan)
    assert finished(plan) == undisturbed


@pytest.mark.parametrize("change", ["a row twice", "a row lost", "another image's rows", "a name outside"])
def test_a_sidecar_of_other_rows_is_made_anew(change: str, plan: Plan, undisturbed: dict[str, bytes]) -> None:
    in_this_process(Maker(Echo(), 1))(plan, unfinished(plan), quiet)
    rows = read_table(plan.sidecar(2))
    if change == "a row twice":
        rows = {name: column[[0, 0, 2, 3]] for name, column in rows.items()}
    elif change == "a row lost":
        rows = {name: column[:-1] for name, column in rows.items()}
    elif change == "another image's rows":
        rows = read_table(plan.sidecar(3))
    else:
        rows["shard"][:] = "../analysis/part-00000.parquet"
    write_table(plan.sidecar(2), rows)
    assert merge(plan, quiet) == [2]
    assert finished(plan) == undisturbed


def test_an_input_that_vanishes_and_comes_back(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    part = plan.folder.parent / "analysis" / "part-00003.parquet"
    data = part.read_bytes()
    part.unlink()
    with pytest.raises(UserError, match=r"part-00003.parquet is gone, .*run `genview analyse`"):
        finish(plan, in_this_process(Maker(Echo(), 1)), quiet)
    part.write_bytes(data)
    assert finished(plan) == undisturbed


def test_an_input_that_comes_back_as_another_is_refused(plan: Plan) -> None:
    part = plan.folder.parent / "analysis" / "part-00003.parquet"
    rows = read_table(part)
    write_table(part, {**rows, "key": rows["key"][::-1]})
    with pytest.raises(UserError, match="holds other images than when the views"):
        finish(plan, in_this_process(Maker(Echo(), 1)), quiet)


def test_a_plan_that_is_damaged_is_written_once_more(plan: Plan, undisturbed: dict[str, bytes]) -> None:
    run_shard(plan, 0, Maker(Echo(), 1))
    cut(plan.folder / "plan" / "part-00000.parquet")
    with pytest.raises(UserError, match=r"Delete .*plan.json and run"):
        finished(plan)
    (plan.folder / "plan" / "plan.json").unlink()
    assert finished(planned(plan.folder, SETTINGS)) == undisturbed


def test_a_disk_that_loses_what_is_written_is_named(plan: Plan) -> None:
    def launch(plan: Plan, shards: list[int], tell: Tell) -> None:
        in_this_process(Maker(Echo(), 1))(plan, shards, tell)
        cut(shard_of(plan, 0))

    with pytest.raises(UserError, match=r"1 shards in .* were damaged each of the 3 times"):
        finish(plan, launch, quiet)
