"""Parts that appear whole, tables, tars, and a run folder that forgets what a resumed run takes again."""

from __future__ import annotations

import errno
import tarfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from genview.errors import UserError, nearest
from genview.store import RunFolder, appearing, claim, read_at, read_table, sweep, write_bytes, write_table, write_tar


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"first")
    with pytest.raises(RuntimeError, match="killed"), appearing(path) as temporary:
        temporary.write_bytes(b"second, but only ha")
        assert path.read_bytes() == b"first"
        raise RuntimeError("killed")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "is full. What was finished before is kept"), (errno.EROFS, "Cannot write")],
)
def test_a_disk_that_refuses_is_a_clear_error_and_leaves_nothing_behind(
    number: int, message: str, tmp_path: Path
) -> None:
    def refuse(_temporary: Path) -> NoReturn:
        raise OSError(number, "refused")

    with pytest.raises(UserError, match=message), appearing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"begun")
        refuse(temporary)
    assert list(tmp_path.iterdir()) == []


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
    for part in ("inner.b: there 2, now null", "inner.c: there null, now 3", "levels: there [0, 100], now [0, 200]"):
        assert part in str(caught.value)
    assert "inner.a" not in str(caught.value)


def test_tables_round_trip(tmp_path: Path) -> None:
    halves = np.arange(12, dtype=np.float16).reshape(3, 4) / 8
    for n in range(2):
        columns = {"key": [f"{n}/ä", "b", "c"], "ratio": np.float32([0, 0.5, n]), "embedding": halves + n}
        write_table(tmp_path / f"part-{n}.parquet", columns)
    rows = read_table([tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"])
    assert list(rows["key"]) == ["0/ä", "b", "c", "1/ä", "b", "c"]
    assert rows["embedding"].dtype == np.float16
    assert np.array_equal(rows["embedding"], np.concatenate([halves, halves + 1]))
    assert rows["ratio"].dtype == np.float32
    assert list(read_table(tmp_path / "part-0.parquet", columns=["ratio"])) == ["ratio"]


def test_damaged_and_absent_tables_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="is damaged"):
        read_table(tmp_path / "part.parquet")
    with pytest.raises(UserError, match="no table to read"):
        read_table([])


def test_tars_are_read_at_random_by_tarfile_and_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    members = [(f"{i:03d}.{kind}", bytes([i]) * (500 * i + 1)) for i in range(4) for kind in ("jpg", "json")]
    places = write_tar(tmp_path / "a.tar", members)
    assert [read_at(tmp_path / "a.tar", *place) for place in places] == [data for _, data in members]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar] == [
            (name, *place) for (name, _), place in zip(members, places, strict=True)
        ]
    dataset = webdataset.WebDataset(f"file:{tmp_path / 'a.tar'}", shardshuffle=False, empty_check=False)
    samples = {sample["__key__"]: sample for sample in dataset}
    assert samples["002"]["jpg"] == members[4][1]
    write_tar(tmp_path / "b.tar", members)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_measures_of_steps_taken_again_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name, step in (("train/loss", 1), ("train/loss", 2), ("knn/top1@k=20", 3), ("train/loss", 3)):
        run.measure(name, 0.5, step)
    with run.measures_file.open("a") as file:
        file.write('{"name": "train/loss", "val')
    run.forget_after(1, ("train/",))
    assert [(m.name, m.step) for m in run.measures()] == [("train/loss", 1), ("knn/top1@k=20", 3)]


def test_quarantine_names_an_image_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for reason in ("empty", "empty", "other"):
        run.quarantine("a.png", reason)
    assert run.quarantine_file.read_text() == '{"key": "a.png", "reason": "empty"}\n'


def test_nearest_names() -> None:
    assert nearest("mehtod", ["method", "images"]) == " Did you mean 'method'?"
    assert nearest("zzz", ["method", "images"]) == ""
