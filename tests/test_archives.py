"""Images in tars and zips: read at random and by other processes; damaged members are named."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from genview.errors import UserError
from genview.images import Archives, UnreadableImage, batches
from image_files import encoded, paint, pixel


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A tar and a zip with two images each, in class folders, beside members that are none."""
    pictures = {f"train/{c}/{n}.png": encoded(Image.new("L", (4, 4), 10 * n)) for n, c in enumerate("abab")}
    names = list(pictures)
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name in [*names[:2], "notes.txt"]:
            info = tarfile.TarInfo(name)
            info.size = len(pictures.get(name, b""))
            tar.addfile(info, io.BytesIO(pictures.get(name, b"")))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name in names[2:]:
            archive.writestr(name, pictures[name])
    return tmp_path


def test_archives_are_read_at_random_and_in_other_processes(archives: Path) -> None:
    source = Archives((str(archives / "*.tar"), str(archives / "two.zip")))
    assert [source.key(i) for i in range(4)] == [f"train/{c}/{n}.png" for n, c in enumerate("abab")]
    assert [source.label(i) for i in (3, 0)] == [1, 0]
    assert [pixel(source.image(i))[0] for i in (3, 1, 2, 0)] == [30, 10, 20, 0]
    again = pickle.loads(pickle.dumps(source))  # as spawned workers receive it
    assert pixel(again.image(3)) == (30, 30, 30)
    assert len(Archives((str(archives),), within="train/a")) == 2
    assert Archives((str(archives),), within="train/a").classes == ()


def test_tars_made_of_a_folder_put_a_dot_in_front(tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a" / "1.png")
    paint(tmp_path / "in" / "b" / "1.PNG")
    paint(tmp_path / "in" / ".thumbs" / "1.png")
    with tarfile.open(tmp_path / "[1].tar", "w") as tar:
        tar.add(tmp_path / "in", arcname=".")
    source = Archives((str(tmp_path / "[1].tar"),))
    assert {source.key(i) for i in range(len(source))} == {"a/1.png", "b/1.PNG"}
    assert source.classes == ("a", "b")
    for within in ("a", "./a/", "/a"):
        assert Archives((str(tmp_path / "[1].tar"),), within=within).key(0) == "a/1.png"


def test_members_without_a_folder_have_no_label(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "flat.ZIP", "w") as archive:
        for name in ("1.png", "a/2.png"):
            archive.writestr(name, encoded(Image.new("L", (4, 4))))
    source = Archives((str(tmp_path),))
    assert (len(source), source.classes, source.label(1)) == (2, (), None)


def test_a_damaged_member_is_named_and_a_damaged_tar_is_refused(archives: Path) -> None:
    noise = encoded(Image.effect_noise((64, 64), 50), "bmp")
    with zipfile.ZipFile(archives / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.bmp", noise)
    damaged = bytearray((archives / "deflated.zip").read_bytes())
    damaged[40:60] = b"\xff" * 20
    (archives / "deflated.zip").write_bytes(damaged)
    with pytest.raises(UnreadableImage, match=r"cannot be read from deflated\.zip"):
        Archives((str(archives / "deflated.zip"),)).image(0)
    whole = (archives / "one.tar").read_bytes()
    second = whole.find(b"train/b/")
    for name, data in (("middle", whole[:second] + b"x" * 512 + whole[second + 512 :]), ("cut", whole[: second - 9])):
        (archives / f"{name}.tar").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}\.tar cannot be read as a plain tar"):
            Archives((str(archives / f"{name}.tar"),))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_archives_that_the_parent_has_open(archives: Path, workers: int) -> None:
    source = Archives((str(archives),))
    assert pixel(source.image(3)) == (30, 30, 30)
    made = list(batches(source, size=4, batch=3, workers=workers, indices=[3, 0, 2, 1]))
    assert [b.indices.tolist() for b in made] == [[3, 0, 2], [1]]
    assert (torch.cat([b.images[:, 0, 0, 0] for b in made]) * 255).round().tolist() == [30, 0, 20, 10]
    assert made[0].images.dtype == torch.float32
    assert made[0].images.shape == (3, 3, 4, 4)


def test_archives_that_cannot_be_used(archives: Path) -> None:
    (archives / "bad.zip").write_bytes(b"nothing of the kind")
    for paths, message in (
        (("bad.zip",), "cannot be read as a zip"),
        (("absent-*.tar",), "No tar or zip file fits"),
        (("oen.tar",), "Did you mean 'one.tar'"),
        (("one.tar", "one.tar"), "'train/a/0.png' more than once"),
    ):
        with pytest.raises(UserError, match=message):
            Archives(tuple(str(archives / path) for path in paths))
    with pytest.raises(UserError, match="no image in"):
        Archives((str(archives / "one.tar"),), within="elsewhere")


def test_the_real_archives(data: Path) -> None:
    cifar = Archives((str(data / "cifar10" / "train-*.zip"),))
    nette = Archives((str(data / "imagenette224" / "train-*.tar"),))
    assert (len(cifar), len(cifar.classes), len(nette), len(nette.classes)) == (25_000, 10, 2_500, 10)
    names = (data / "cifar10" / "classes.txt").read_text().split()
    assert list(cifar.classes) == names, "labels agree with the usual ones"
    assert (cifar.image(24_999).size, nette.image(2_499).mode) == ((32, 32), "RGB")
