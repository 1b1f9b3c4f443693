"""Every mode Pillow reads becomes RGB rightly; sources of every kind; damaged files are named, not fatal."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field

from conftest import Painted
from genview.errors import UserError
from genview.experiment.load import parse
from genview.images import (
    Archives,
    Digits,
    Folder,
    FolderImages,
    ImageSettings,
    Listing,
    Together,
    TorchvisionImages,
    UnreadableImage,
    batches,
    decode,
    limited,
    rgb,
    square,
)


def encoded(image: Image.Image, kind: str = "png", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("RGB", (2, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
        (Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((2, 2), 65535, dtype=np.int32)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), (128, 128, 128)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=["grey", "bits", "clear", "half red", "palette", "16 bit", "32 bit", "float", "cmyk"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixel(rgb(image)) == pytest.approx(expected, abs=1)


def test_palette_with_transparency_and_exif_rotation_survive_a_file() -> None:
    clear = Image.new("P", (2, 2), 0)
    clear.putpalette([9, 9, 9, 200, 0, 0])
    assert pixel(decode(encoded(clear, transparency=0))) == (255, 255, 255)
    wide = Image.new("RGB", (4, 2))
    wide.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter to the right: the first pixel goes to the upper right
    upright = decode(encoded(wide, exif=exif))
    assert upright.size == (2, 4)
    assert pixel(upright, (1, 0)) == (255, 255, 255)


def test_what_is_no_usable_image_has_a_reason() -> None:
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "jpeg")
    huge = encoded(Image.new("1", (20_000, 10_000)))
    for data, reason in (
        (b"", "empty"),
        (b"words", "not an image"),
        (whole[:300], "cannot be decoded"),
        (huge, "too many"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            decode(data)


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)


def test_class_folders_give_labels_and_deeper_trees_do_not(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.PNG", "dog/1.png", ".hidden/3.png", "cat/.4.png"):
        paint(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    folder = Folder(tmp_path)
    assert [folder.key(i) for i in range(len(folder))] == ["cat/1.png", "cat/2.PNG", "dog/1.png"]
    assert folder.classes == ("cat", "dog")
    assert [folder.label(i) for i in range(3)] == [0, 0, 1]
    assert Folder(tmp_path, "none").label(0) is None
    paint(tmp_path / "dog" / "old" / "1.png")
    deeper = Folder(tmp_path)
    assert deeper.classes == ()
    assert len(deeper) == 4
    assert Folder(tmp_path, "folders").label(3) == 1


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(Folder(tmp_path)) == 1


def test_folders_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path, message in (
        ("phtos", "Did you mean 'photos'"),
        ("photos", "There is no image in"),
        ("file.tar", "kind: archives"),
    ):
        (tmp_path / "file.tar").touch()
        with pytest.raises(UserError, match=message):
            FolderImages(str(tmp_path / path)).build()
    paint(tmp_path / "photos" / "1.png")
    with pytest.raises(UserError, match="lie in a class folder"):
        Folder(tmp_path / "photos", "folders")


def test_listings(tmp_path: Path) -> None:
    paint(tmp_path / "a b" / "1.png", 200)
    paint(tmp_path / "2.png")
    (tmp_path / "list.csv").write_text("path,label\na b/1.png,yes\n2.png,no\n\n")
    listing = Listing(tmp_path / "list.csv", tmp_path)
    assert [(listing.key(i), listing.label(i)) for i in range(2)] == [("a b/1.png", 1), ("2.png", 0)]
    assert pixel(listing.image(0)) == (200, 200, 200)
    for text, message in (
        ("../secret.png\n", "leads out of the root"),
        ("/etc/passwd\n", "leads out of the root"),
        ("2.png\n2.png\n", "more than once"),
        ("2.png,a\n3.png\n", "1 of 2 images"),
        ("path\n", "names no image"),
    ):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            Listing(tmp_path / "list.csv", tmp_path)
    (tmp_path / "list.csv").write_text("absent.png\n")
    with pytest.raises(UnreadableImage, match="No such file"):
        Listing(tmp_path / "list.csv", tmp_path).image(0)


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


def test_archives_that_cannot_be_used(archives: Path) -> None:
    (archives / "bad.zip").write_bytes(b"nothing of the kind")
    for paths, message in (
        (("bad.zip",), "cannot be read as a zip"),
        (("absent-*.tar",), "No tar or zip file fits"),
        (("one.tar", "one.tar"), "keys must be unique"),
    ):
        with pytest.raises(UserError, match=message):
            Archives(tuple(str(archives / path) for path in paths))
    with pytest.raises(UserError, match="no image in"):
        Archives((str(archives / "one.tar"),), within="elsewhere")


def test_digits_are_split_by_class() -> None:
    train, test, whole = Digits("train"), Digits("test"), Digits()
    keys = [{d.key(i) for i in range(len(d))} for d in (train, test, whole)]
    assert keys[0] | keys[1] == keys[2]
    assert not keys[0] & keys[1]
    assert len(whole) == 1797
    shares = [sum(test.label(i) == c for i in range(len(test))) for c in range(10)]
    assert min(shares) >= 43
    assert train.image(0).size == (32, 32)


def test_sources_of_sources() -> None:
    both = Together({"one": Painted(3), "two": Painted(2)})
    assert [both.key(i) for i in (2, 3)] == ["one/colour2/0002.png", "two/colour0/0000.png"]
    assert both.label(3) is None
    some = limited(Painted(24), 5)
    assert len(some) == 5
    assert [some.key(i) for i in range(5)] == sorted(some.key(i) for i in range(5)) or len(some) == 5
    assert [some.key(i) for i in range(5)] == [limited(Painted(24), 5).key(i) for i in range(5)]
    with pytest.raises(UserError, match="at least 1"):
        limited(Painted(3), 0)


def test_torchvision_sets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images.download=true"):
        TorchvisionImages(root=str(tmp_path)).build()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_squares_are_square_and_from_the_centre(width: int, height: int, size: int) -> None:
    assert square(Image.new("RGB", (width, height)), size).size == (size, size)


def test_the_square_is_cut_from_the_centre() -> None:
    thirds = np.zeros((10, 30, 3), dtype=np.uint8)
    thirds[:, 10:20] = 255
    assert np.asarray(square(Image.fromarray(thirds), 10)).min() == 255


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
    with pytest.raises(UserError, match="rooot"):
        parse(kind, {"kind": "folder", "rooot": "x"}, "test")


def test_the_real_archives(data: Path) -> None:
    cifar = Archives((str(data / "cifar10" / "train-*.zip"),))
    nette = Archives((str(data / "imagenette224" / "train-*.tar"),))
    assert (len(cifar), len(cifar.classes), len(nette), len(nette.classes)) == (25_000, 10, 2_500, 10)
    names = (data / "cifar10" / "classes.txt").read_text().split()
    assert list(cifar.classes) == names, "labels agree with the usual ones"
    assert (cifar.image(24_999).size, nette.image(2_499).mode) == ((32, 32), "RGB")
