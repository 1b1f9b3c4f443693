"""The generate stage: shards, seeds, resume; and the small generator's layout and training."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from echo import Echo, analysed, files, key, make, planned, sidecars
from genview.encoders import BackboneSettings, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import GenerateSettings, Maker, shard
from genview.generators.fit import FitSettings
from genview.generators.generate import finish, in_this_process
from genview.generators.shard import encoded, run_shard
from genview.generators.token_diffusion import NetworkSettings
from genview.seeds import seed_of
from genview.store import read_table

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, condition_from=(0, 2), channels=4)
FIT = FitSettings(
    network=NetworkSettings(widths=(16, 32), layers=1),
    samples=48,
    batch=8,
    workers=0,
    save_every=2,
    measure_every=1,
    device="cpu",
)

PNG = GenerateSettings(format="png")


def test_every_image_gets_its_views_with_its_own_level_and_seed(tmp_path: Path) -> None:
    views = make(tmp_path / "views", replace(PNG, draws=2, shard=7))
    rows, ratios = sidecars(views.folder), read_table(sorted((tmp_path / "analysis").glob("*")))
    assert len(views) == 20
    assert sorted(zip(rows["key"], rows["draw"], strict=True)) == sorted(
        (key(i), d) for i in range(10) for d in (0, 1)
    )
    assert set(rows["status"]) == {"made"}
    for name, draw, level, seed in zip(rows["key"], rows["draw"], rows["level"], rows["seed"], strict=True):
        ratio = ratios["ratio"][list(ratios["key"]).index(name)]
        assert level == min(400, 100 * int(np.ceil(ratio / 0.2) - 1))
        assert seed == seed_of(7, name, int(draw), "view")


def test_all_draws_of_an_image_lie_in_one_shard_and_none_is_left_over(tmp_path: Path) -> None:
    make(tmp_path / "views", replace(PNG, draws=3, shard=7))
    rows = sidecars(tmp_path / "views")
    assert len(rows["key"]) == 30
    for i in range(10):
        assert len(set(rows["shard"][rows["key"] == key(i)])) == 1
    sizes = np.unique(rows["shard"], return_counts=True)[1]
    assert sizes.tolist() == [6, 6, 6, 6, 6]


def test_views_do_not_depend_on_shards_batches_or_order(tmp_path: Path) -> None:
    one = make(tmp_path / "one" / "views", replace(PNG, shard=10))
    analysed(tmp_path / "two" / "analysis", part=3, order=np.random.default_rng(1).permutation(10).tolist())
    two = make(tmp_path / "two" / "views", replace(PNG, shard=4), batch=3)
    for i in range(10):
        (a,), (b,) = one.find(key(i), 0), two.find(key(i), 0)
        assert np.array_equal(a.image.pixels(), b.image.pixels())
        assert a.level == b.level


def test_bytes_are_the_same_at_the_same_batch_size(tmp_path: Path) -> None:
    make(tmp_path / "one", GenerateSettings(shard=4))
    make(tmp_path / "two", GenerateSettings(shard=4))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_resumed_run_makes_what_is_missing_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    settings = GenerateSettings(shard=4)
    make(tmp_path / "whole", settings)
    make(tmp_path / "cut", settings)
    for name in ("part-00001.parquet", "part-00002.parquet", next((tmp_path / "cut").glob("part-00002-*.tar")).name):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / ".part-00001.tar.1.part").write_bytes(b"half")
    echo = Echo()
    make(tmp_path / "cut", settings, echo)
    assert echo.calls == [4, 2], "one batch for each of the two shards without a table"
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "views", GenerateSettings(shard=4))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")}
    echo = Echo()
    make(tmp_path / "views", GenerateSettings(shard=4), echo)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")} == before
    assert echo.calls == []


def test_progress_counts_views_and_starts_where_the_last_run_stopped(tmp_path: Path) -> None:
    plan = planned((analysed(tmp_path / "analysis") and tmp_path / "views"), GenerateSettings(shard=4))
    run_shard(plan, 1, Maker(Echo(), 4))
    told: list[tuple[str, int, int]] = []
    finish(plan, in_this_process(Maker(Echo(), 3)), lambda what, done, total, _: told.append((what, done, total)))
    assert [done for what, done, total in told if what == "generate" and total == 10] == [7, 8, 8, 10, 10]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "views", GenerateSettings(shard=4))
    with pytest.raises(UserError, match="shard: there 4, now 5"):
        make(tmp_path / "views", GenerateSettings(shard=5))


def test_memory_that_does_not_suffice_halves_the_batch_for_good(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", replace(PNG, shard=5))
    echo = Echo(room=3)
    small = make(tmp_path / "small", replace(PNG, shard=5), echo, batch=8)
    assert echo.calls == [2, 2, 1, 2, 2, 1]
    assert files(plain.folder) == files(small.folder)
    with pytest.raises(UserError, match="One view at once does not fit"):
        make(tmp_path / "none", PNG, Echo(room=0))


def test_black_views_are_made_again_in_float32_and_then_recorded(tmp_path: Path) -> None:
    bad = [seed_of(7, key(i), 0, "view") for i in (2, 5, 6)]
    echo = Echo(black=bad, exactly_black=bad[1:2])
    views = make(tmp_path / "views", replace(PNG, shard=4), echo)
    assert echo.exacts == 1, "once for a worker, not for a row"
    rows = sidecars(views.folder)
    failed = {str(name) for name in rows["key"][rows["status"] == "failed"]}
    assert failed == {key(5)}
    assert rows["length"][rows["status"] == "failed"].tolist() == [0]
    assert (views.made, views.failed, views.dropped, len(views)) == (9, 1, 0, 9)
    assert views.find(key(5), 0) == []
    plain = make(tmp_path / "plain", replace(PNG, shard=4))
    for i in (2, 6):
        mended, healthy = (table.find(key(i), 0)[0].image.pixels() for table in (views, plain))
        assert np.array_equal(mended, healthy)


def test_images_are_encoded_beside_the_sampling_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def noted(view: Tensor, format_: str) -> bytes:
        threads.add(threading.get_ident())
        return encoded(view, format_)

    monkeypatch.setattr(shard, "encoded", noted)
    make(tmp_path / "views", PNG)
    assert threads
    assert threading.get_ident() not in threads
