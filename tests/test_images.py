"""Sources of digits, of torchvision and of sources; batches name damaged images, which are not fatal."""

from __future__ import annotations

import pickle
from hashlib import md5
from pathlib import Path
from typing import Annotated, Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field, TypeAdapter
from sklearn.datasets import load_digits

from conftest import Painted
from genview.errors import UserError
from genview.experiment.load import parse
from genview.images import Digits, FolderImages, ImageSettings, Together, TorchvisionImages, batches, limited, square
from image_files import pixel


def test_digits_are_split_by_class() -> None:
    train, test, whole = Digits("train"), Digits("test"), Digits()
    keys = [{d.key(i) for i in range(len(d))} for d in (train, test, whole)]
    assert keys[0] | keys[1] == keys[2]
    assert not keys[0] & keys[1]
    assert len(whole) == 1797
    for digit in range(10):
        rows = [i for i in range(1797) if whole.label(i) == digit]
        fourth = {whole.key(row) for row in rows[3::4]}
        assert {test.key(i) for i in range(len(test)) if test.label(i) == digit} == fourth
    assert (train.image(0).size, train.image(0).mode, train.key(0)) == ((32, 32), "RGB", "digits/0000")
    small = np.asarray(train.image(0).resize((8, 8), Image.Resampling.BOX).convert("L"), float)
    assert np.corrcoef(small.ravel(), load_digits().images[0].ravel())[0, 1] > 0.95


def test_sources_of_sources() -> None:
    both = Together({"one": Painted(3), "two": Painted(2)})
    assert [both.key(i) for i in (2, 3)] == ["one/colour2/0002.png", "two/colour0/0000.png"]
    assert both.label(3) is None
    assert np.array_equal(np.asarray(both.image(4)), np.asarray(Painted(2).image(1)))
    for parts in ({}, {"a/b": Painted(1)}):
        with pytest.raises(UserError, match=r"images\.parts"):
            Together(parts)
    some, again, whole = limited(Painted(24), 5), limited(Painted(24), 5), Painted(24)
    rows = [int(some.key(i)[-8:-4]) for i in range(len(some))]
    assert len(set(rows)) == 5
    assert rows == sorted(rows) != list(range(5))
    assert [some.key(i) for i in range(5)] == [again.key(i) for i in range(5)]
    assert [some.label(i) for i in range(5)] == [whole.label(row) for row in rows]
    with pytest.raises(UserError, match="at least 1"):
        limited(Painted(3), 0)


def test_torchvision_sets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="`download` to true"):
        TorchvisionImages(root=str(tmp_path)).build()

    def fail(_: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", fail)
    with pytest.raises(UserError, match=r"no route.*It could not be fetched"):
        TorchvisionImages(root=str(tmp_path), download=True).build()


def test_torchvision_sets_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(name: str, content: dict[str, Any]) -> list[str]:
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return [name, md5(path.read_bytes()).hexdigest()]

    rows = np.zeros((2, 3, 32, 32), np.uint8)
    rows[:, 1], rows[1, 0, 31, 0] = 40, 255  # channels first: green, and one red corner
    own = batch("test_batch", {"data": rows.reshape(2, -1), "labels": [3, 1]})
    meta = batch("batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    for name, value in (
        ("train_list", []),
        ("test_list", [own]),
        ("meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}),
    ):
        monkeypatch.setattr(f"torchvision.datasets.CIFAR10.{name}", value)
    source = TorchvisionImages(root=str(tmp_path), part="test").build()
    assert [(source.key(i), source.label(i)) for i in range(2)] == [("test/00000", 3), ("test/00001", 1)]
    assert source.classes[3] == "c3"
    assert [pixel(source.image(1), at) for at in ((0, 0), (0, 31))] == [(0, 40, 0), (255, 40, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_leave_out_and_name_what_cannot_be_read(workers: int) -> None:
    source = Painted(10, broken=(0, 4, 5))
    bad: list[tuple[str, str]] = []
    made = list(batches(source, size=16, batch=4, workers=workers, unreadable=lambda *row: bad.append(row)))
    assert torch.cat([b.indices for b in made]).tolist() == [1, 2, 3, 6, 7, 8, 9]
    assert [key for key, _ in bad] == [source.key(i) for i in (0, 4, 5)]
    images = torch.cat([b.images for b in made])
    expected = torch.from_numpy(np.asarray(square(source.image(6), 16)).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(images[3], expected)
    with pytest.raises(UserError, match="cannot be used: made so"):
        list(batches(source, size=16, batch=4))


def test_image_settings_from_yaml() -> None:
    kind: Any = Annotated[ImageSettings, Field(discriminator="kind")]
    inner = {"digits": {"kind": "digits", "part": "test"}, "folder": {"kind": "folder", "root": "x"}}
    made = parse(kind, {"kind": "together", "parts": inner}, "test")
    assert made.parts["folder"] == FolderImages("x")
    assert len(TypeAdapter(kind).validate_python({"kind": "digits", "part": "test", "limit": 7}).build()) == 7
    for content, message in (
        ({"kind": "folder", "rooot": "x"}, "rooot"),
        ({"kind": "together", "parts": {"a": {"kind": "digits", "prt": "test"}}}, "prt"),
        ({"kind": "fodler", "root": "x"}, "folder"),
    ):
        with pytest.raises(UserError, match=message):
            parse(kind, content, "test")
