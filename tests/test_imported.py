"""Views made elsewhere: checked, stored as they are, found again; an import that was stopped goes on."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Painted
from echo import files, quiet, sidecars
from genview.errors import UserError
from genview.generators import Account, GenerateSettings, Job, import_views, make_plan
from genview.generators.imported import imported
from genview.noise import UNKNOWN, Constant
from genview.store import read_at
from made_elsewhere import COUNT, MIRRORED, Held, mirrored, take, view


def test_the_bytes_of_a_file_are_stored_as_they_are(tmp_path: Path) -> None:
    tree = mirrored()
    _, views, _ = take(tmp_path / "views", Held(tree))
    rows = sidecars(views.folder)
    for file, shard, offset, length in zip(
        *(rows[name] for name in ("file", "shard", "offset", "length")), strict=True
    ):
        assert read_at(views.folder / shard, int(offset), int(length)) == tree[file]
    assert set(rows["seed"]) == {-1}
    assert np.isnan(rows["guidance"]).all()
    with tarfile.open(views.folder / rows["shard"][0]) as tar:
        names = tar.getnames()
        about = tar.extractfile(names[1])
        assert about is not None
        assert json.load(about) == {"key": "colour0/0000.png", "draw": 0, "level": UNKNOWN, "seed": -1}
    assert names[:2] == ["part-00000-000000.jpg", "part-00000-000000.json"]


def test_broken_files_are_named_counted_and_left_out(tmp_path: Path) -> None:
    tree = mirrored()
    tree |= {"colour2/0002.jpg": b"", "colour0/0006.jpg": tree["colour0/0006.jpg"][:200]}
    account, views, bad = take(tmp_path / "views", Held(tree))
    assert account == Account(9, 9, 0, 0, 0, unreadable=2)
    assert [key for key, _ in bad] == ["colour2/0002.jpg", "colour0/0006.jpg"]
    assert bad[0][1] == "the file is empty"
    assert views.find("colour2/0002.png", 0) == []
    assert (len(views), views.planned, views.failed) == (7, 9, 2)
    assert views.missing([Painted().key(i) for i in range(COUNT)]) == 2


class Interrupted(Held):
    """Files of which one is not given until asked to."""

    def data(self, i: int) -> bytes:
        if i == 6:
            raise KeyboardInterrupt
        return super().data(i)


def test_an_import_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    take(tmp_path / "whole", Held(mirrored()))
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "views", Interrupted(mirrored()))
    assert imported(tmp_path / "views")
    assert (tmp_path / "views" / "part-00000.parquet").exists()
    assert not (tmp_path / "views" / "part-00001.parquet").exists()
    told: list[tuple[str, int, int]] = []
    import_views(
        Painted(COUNT),
        Held(mirrored()),
        tmp_path / "views",
        MIRRORED,
        identity={"from": "here"},
        unreadable=lambda *_: None,
        tell=lambda what, done, total, _: told.append((what, done, total)),
    )
    assert [row for row in told if row[0] == "import"] == [("import", 8, 9), ("import", 9, 9)]
    assert files(tmp_path / "views") == files(tmp_path / "whole")


def test_a_finished_import_reads_no_file_again_and_a_damaged_shard_is_made_anew(tmp_path: Path) -> None:
    account, views, _ = take(tmp_path / "views", Held(mirrored()))
    before = files(views.folder)
    assert take(tmp_path / "views", Interrupted(mirrored()))[0] == account
    next(iter(views.folder.glob("part-00001-*.tar"))).unlink()
    take(tmp_path / "views", Held(mirrored()))
    assert files(views.folder) == before


def test_an_import_that_was_killed_while_planning_binds_the_folder_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "views", Interrupted(mirrored()))
    (tmp_path / "views" / "plan" / "plan.json").unlink()
    with pytest.raises(UserError, match="there 4, now 5"):
        take(tmp_path / "views", Held(mirrored()), replace(MIRRORED, shard=5))
    for part in (tmp_path / "views").glob("part-*"):
        part.unlink()
    take(tmp_path / "views", Held(mirrored()), replace(MIRRORED, shard=5))
    take(tmp_path / "whole", Held(mirrored()), replace(MIRRORED, shard=5))
    assert files(tmp_path / "views") == files(tmp_path / "whole")


def test_files_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "views", Interrupted(mirrored()))
    names = list(mirrored())
    other = Held({names[1]: view(0), names[0]: view(1), **{name: view(0) for name in reversed(names[2:])}})
    with pytest.raises(UserError, match="files have changed since"):
        take(tmp_path / "views", other)
    with pytest.raises(UserError, match="files_found: there 9, now 8"):
        take(tmp_path / "views", Held(dict(list(mirrored().items())[:8])))


def test_imported_and_generated_views_never_mix(tmp_path: Path) -> None:
    take(tmp_path / "views", Held(mirrored()))
    job = Job(analysis=tmp_path / "analysis", policy=Constant(200), guidance=1.0, seed=0)
    with pytest.raises(UserError, match="would mix two experiments"):
        make_plan(job, GenerateSettings(), tmp_path / "views", identity={}, tell=quiet)
    assert not imported(tmp_path / "elsewhere")
