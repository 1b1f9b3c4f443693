"""Parts that appear whole, tables, tars, and a run folder that forgets what a resumed run takes again."""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from genview.errors import UserError, nearest
from genview.store import (
    RunFolder,
    appearing,
    claim,
    find_rows,
    read_at,
    read_mapped,
    read_table,
    sweep,
    write_arrays,
    write_bytes,
    write_mapped,
    write_state,
    write_table,
    write_tar,
)
from genview.store.table import Column


def _killed_while_writing(path: Path) -> NoReturn:
    with appearing(path) as temporary:
        temporary.write_bytes(b"second, but only ha")
        assert path.read_bytes() == b"first"
        raise RuntimeError("killed")


def _refused_while_writing(path: Path, number: int) -> NoReturn:
    with appearing(path) as temporary:
        temporary.write_bytes(b"begun")
        raise OSError(number, "refused")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"first")
    with pytest.raises(RuntimeError, match="killed"):
        _killed_while_writing(path)
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "is full. What was finished before is kept"), (errno.EROFS, "Cannot write")],
)
def test_a_disk_that_refuses_is_a_clear_error_and_leaves_nothing_behind(
    number: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        _refused_while_writing(tmp_path / "file", number)
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.FileIO):
    def write(self, _data: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, b"data"),
        lambda path: write_table(path, {"ratio": np.zeros(9)}),
        lambda path: write_arrays(path, {"ratio": np.zeros(9)}),
        lambda path: write_state(path, {"weight": torch.zeros(9)}),
        lambda path: RunFolder(path.parent).measure("train/loss", 0.5, 1),
    ],
    ids=["bytes", "table", "arrays", "state", "measure"],
)
def test_every_writer_survives_a_full_disk(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *_: FullDisk(path, mode.replace("b", "").replace("+", ""))
    )
    with pytest.raises(UserError, match="is full"):
        write(tmp_path / "file")
    assert [p for p in tmp_path.iterdir() if p.stat().st_size or p.suffix == ".part"] == []


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".part-00000.tar.123.part").write_bytes(b"half")
    (tmp_path / "part-00000.tar").write_bytes(b"whole")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.tar"]


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    claim(tmp_path, {"levels": (0, 100), "inner": {"a": 1, "b": 2}})
    claim(tmp_path, {"inner": {"b": 2, "a": 1}, "levels": [0, 100]})
    with pytest.raises(UserError) as caught:
        claim(tmp_path, {"levels": [0, 200], "inner": {"a": 1, "c": 3}})
    for part in (
        "inner.b: there 2, now absent",
        "inner.c: there absent, now 3",
        "levels: there [0, 100], now [0, 200]",
    ):
        assert part in str(caught.value)
    assert "inner.a" not in str(caught.value)
    with pytest.raises(UserError, match=r"\(limit: there absent, now null\)"):
        claim(tmp_path, {"levels": [0, 100], "inner": {"a": 1, "b": 2}, "limit": None})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        claim(tmp_path, {"levels": [0, 100]})


def test_tables_round_trip(tmp_path: Path) -> None:
    halves = np.arange(12, dtype=np.float16).reshape(3, 4) / 8
    for n in range(2):
        columns: dict[str, Column] = {
            "key": [f"{n}/ä", "b", "c"],
            "ratio": np.array([0, 0.5, n], np.float32),
            "embedding": halves + n,
        }
        write_table(tmp_path / f"part-{n}.parquet", columns)
    rows = read_table([tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"])
    assert list(rows["key"]) == ["0/ä", "b", "c", "1/ä", "b", "c"]
    assert rows["embedding"].dtype == np.float16
    assert np.array_equal(rows["embedding"], np.concatenate([halves, halves + 1]))
    assert rows["ratio"].dtype == np.float32
    assert list(read_table(tmp_path / "part-0.parquet", columns=["ratio"])) == ["ratio"]
    write_table(tmp_path / "none.parquet", {"embedding": np.zeros((0, 4), np.float16)})
    assert read_table(tmp_path / "none.parquet")["embedding"].shape == (0, 4)


def test_damaged_and_absent_tables_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="is damaged"):
        read_table(tmp_path / "part.parquet")
    with pytest.raises(UserError, match="no table to read"):
        read_table([])
    with pytest.raises(UserError, match="has not run yet"):
        read_table(tmp_path / "absent.parquet")
    write_table(tmp_path / "part.parquet", {"ratio": np.arange(100.0)})
    with pytest.raises(UserError, match="has no column key"):
        read_table(tmp_path / "part.parquet", ["key", "ratio"])


def test_a_table_with_flipped_bytes_is_refused_or_read_rightly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float16)
    write_table(tmp_path / "whole.parquet", {"embedding": values})
    whole = (tmp_path / "whole.parquet").read_bytes()
    place = whole.find(values.tobytes()[:64])
    assert place > 0, "the values lie in the file as they are"
    damaged = bytearray(whole)
    damaged[place + 8] ^= 0xFF
    (tmp_path / "part.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged"):
        read_table(tmp_path / "part.parquet")


def test_a_mapped_table_is_not_copied_and_keeps_its_values(tmp_path: Path) -> None:
    numbers, words = np.arange(5, dtype=np.uint64), ["a", "ä/b.png", "", "c", "d"]
    write_mapped(tmp_path / "rows.arrow", {"number": numbers, "key": words})
    found = read_mapped(tmp_path / "rows.arrow")
    mapped = found["number"].to_numpy(zero_copy_only=True)
    assert np.array_equal(mapped, numbers)
    assert not mapped.flags.writeable
    assert [found["key"][i].as_py() for i in range(5)] == words
    write_mapped(tmp_path / "none.arrow", {"number": numbers[:0], "key": []})
    assert len(read_mapped(tmp_path / "none.arrow")["number"]) == 0


def test_mapped_tables_that_are_missing_or_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not run yet"):
        read_mapped(tmp_path / "rows.arrow")
    write_mapped(tmp_path / "rows.arrow", {"number": np.arange(1000)})
    (tmp_path / "rows.arrow").write_bytes((tmp_path / "rows.arrow").read_bytes()[:900])
    with pytest.raises(UserError, match="is damaged"):
        read_mapped(tmp_path / "rows.arrow")


def test_tars_are_read_at_random_by_tarfile_and_by_webdataset(tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    members = [(f"{i:03d}.{kind}", bytes([i]) * (500 * i + 1)) for i in range(4) for kind in ("jpg", "json")]
    members += [("long" * 60 + "/ä.jpg", b"x" * 512), ("empty.jpg", b"")]
    places = write_tar(tmp_path / "a.tar", members)
    assert [read_at(tmp_path / "a.tar", *place) for place in places] == [data for _, data in members]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar] == [
            (name, *place) for (name, _), place in zip(members, places, strict=True)
        ]
    with (tmp_path / "a.tar").open("rb") as stream:
        samples = {s["__key__"]: s for s in group_by_keys(tar_file_expander([{"url": "a.tar", "stream": stream}]))}
    assert samples["002"]["jpg"] == members[4][1]
    write_tar(tmp_path / "b.tar", members)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_measures_of_steps_taken_again_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name, step in (("train/loss", 1), ("train/loss", 2), ("knn/top1@k=20", 3), ("train/loss", 3)):
        run.measure(name, 0.5, step)
    with run.measures_file.open("a") as file:
        file.write('{"name": "train/loss", "val')
    run.measure("linear/top1", 0.5, 4)
    assert [m.name for m in run.measures()][-1] == "linear/top1", "the cut line does not swallow the next"
    run.forget_after(1, ("train/",))
    assert [(m.name, m.step) for m in run.measures()] == [
        ("train/loss", 1),
        ("knn/top1@k=20", 3),
        ("linear/top1", 4),
    ]


def test_quarantine_names_an_image_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for reason in ("empty", "empty", "other"):
        run.quarantine("a.png", reason)
    assert run.quarantine_file.read_text() == '{"key": "a.png", "reason": "empty"}\n'


def test_nearest_names() -> None:
    assert nearest("mehtod", ["method", "images"]) == " Did you mean 'method'?"
    assert nearest("zzz", ["method", "images"]) == ""


def test_rows_are_found_by_their_keys(tmp_path: Path) -> None:
    parts = [tmp_path / f"part-{n}.parquet" for n in range(3)]
    for n, part in enumerate(parts):
        grid = np.arange(8, dtype=np.float16).reshape(4, 2) + 10 * n
        write_table(part, {"key": [f"{n}/{i}" for i in range(4)], "map": grid, "ratio": np.arange(4) / 4 + n})
    found = find_rows(parts, {"2/1", "0/3", "absent"}, ("key", "map", "ratio", "unknown"))
    assert list(found) == ["key", "map", "ratio"]
    assert found["key"].tolist() == ["0/3", "2/1"]
    assert found["map"].tolist() == [[6, 7], [22, 23]]
    assert found["ratio"].tolist() == [0.75, 2.25]
    assert find_rows([], {"a"}, ("key",)) == {}
    parts[1].write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        find_rows(parts, {"a"}, ("key",))
