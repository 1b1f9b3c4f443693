"""Reading views by key; and what is said of names, stores and analyses that are not as they should be."""

from __future__ import annotations

import json
import pickle
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from echo import Echo, analysed, job, key, make, planned, quiet, sidecars
from genview.errors import UserError
from genview.foreground import Analysis
from genview.generators import GenerateSettings, Maker, ViewTable, generate
from genview.generators.shard import run_shard
from genview.images.decode import decode
from genview.images.held import Held, held
from genview.store import read_at, write_json

SETTINGS = GenerateSettings(shard=6, draws=2, format="png")


def test_a_key_finds_its_own_views_in_the_order_of_draws(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    rows = sidecars(views.folder)
    for i, name in enumerate(rows["key"]):
        (found,) = views.find(str(name), int(rows["draw"][i]))
        data = read_at(views.folder / rows["shard"][i], int(rows["offset"][i]), int(rows["length"][i]))
        assert found.draw == rows["draw"][i]
        assert np.array_equal(found.image.pixels(), np.asarray(decode(data)))
        assert found.level == rows["level"][i]
    again = [views.find(key(1), n)[0].image.pixels() for n in (0, 2)]
    assert np.array_equal(again[0], again[1])
    assert views.find("absent", 0) == []


def test_held_views_are_those_of_the_files_and_travel_with_the_table(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    kept = ViewTable(views.folder, held(views.images, 3 * 8 * 8 * len(views)))
    assert isinstance(kept.images, Held)
    assert len({views.images.key(row) for row in range(len(views))}) == len(views)
    expected = [found.image.pixels() for i in range(10) for found in views.find(key(i), 1, 2)]
    for shard in views.folder.glob("*.tar"):
        shard.unlink()
    sent = copy(kept)  # as pickle does it, less the bytes; that the memory travels is tested where it is made
    found = [view.image.pixels() for i in range(10) for view in sent.find(key(i), 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_missing_counts_different_keys_without_a_view(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    assert views.missing([key(i) for i in range(10)]) == 0
    assert views.missing([key(3), "absent", "absent", "another"]) == 2
    assert views.missing([]) == 0


def test_keys_whose_digests_share_a_half_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        numbers = [int("".join(c for c in str(name) if c.isdigit()) or 99) for name in keys]
        return np.array([n // 6 for n in numbers], np.uint64), np.array([n % 6 for n in numbers], np.uint64)

    for where in ("merge", "views"):
        monkeypatch.setattr(f"genview.generators.{where}.digests", halves)
    views = make(tmp_path / "views", SETTINGS)
    for i in range(10):
        rows = views.rows(key(i))
        assert (len(rows), views.draws[rows.start : rows.stop].tolist()) == (2, [0, 1])
    assert len({views.rows(key(i)).start for i in range(10)}) == 10
    assert len(views.rows("4 more than 9: 94")) == 0
    assert views.missing([key(i) for i in range(10)]) == 0
    assert views.missing([key(4), key(10)]) == 1


def test_the_index_is_mapped_and_travels_as_its_folder(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    assert not views.levels.flags.owndata
    data = pickle.dumps(views.find)
    assert len(data) < 500
    assert np.array_equal(
        pickle.loads(data)(key(2), 1)[0].image.pixels(),
        views.find(key(2), 1)[0].image.pixels(),
    )


def test_a_store_that_is_not_merged_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no generated views: run `genview generate` first"):
        ViewTable(tmp_path / "nothing")
    analysed(tmp_path / "analysis")
    plan = planned(tmp_path / "views", SETTINGS)
    run_shard(plan, 0, Maker(Echo(), 4))
    with pytest.raises(UserError, match="is not finished: run `genview generate` first"):
        ViewTable(tmp_path / "views")


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    shards = json.loads((views.folder / "shards.json").read_text())
    for damaged in ("{", json.dumps([["../secret.tar", 3], *shards[1:]])):
        (views.folder / "shards.json").write_text(damaged)
        with pytest.raises(UserError, match=r"shards.json (is damaged|names '../secret.tar')"):
            ViewTable(views.folder)
    make(tmp_path / "views", SETTINGS)
    ViewTable(views.folder)


def test_a_merge_that_is_cut_short_is_done_again(tmp_path: Path) -> None:
    views = make(tmp_path / "views", SETTINGS)
    before = (views.folder / "index.arrow").read_bytes()
    (views.folder / "summary.json").unlink()
    (views.folder / "index.arrow").write_bytes(b"half")
    echo = Echo()
    generate(job(tmp_path / "analysis"), Maker(echo, 4), SETTINGS, views.folder, identity={"a": 1}, tell=quiet)
    assert echo.calls == []
    assert (views.folder / "index.arrow").read_bytes() == before


def test_generating_from_an_unfinished_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 of 1 parts of the analysis: run `genview analyse` first"):
        Analysis(tmp_path).check()
    analysed(tmp_path, 10, part=4)
    write_json(tmp_path / "settings.json", {"images_found": 13, "part": 4})
    with pytest.raises(UserError, match="3 of 4 parts of the analysis"):
        Analysis(tmp_path).check()
    write_json(tmp_path / "settings.json", {"images_found": 12, "part": 4})
    Analysis(tmp_path).check()
