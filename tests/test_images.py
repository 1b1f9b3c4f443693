"""Every mode Pillow reads becomes RGB rightly; sources of every kind; damaged files are named, not fatal."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from hashlib import md5
from pathlib import Path
from typing import Annotated, Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field, TypeAdapter
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from conftest import Painted
from genview.errors import UserError
from genview.experiment.load import parse
from genview.images import (
    Archives,
    DigitImages,
    Digits,
    Folder,
    FolderImages,
    ImageSettings,
    ImageSource,
    Listing,
    SingleImages,
    Together,
    TogetherImages,
    TorchvisionImages,
    UnreadableImage,
    batches,
    decode,
    limited,
    rgb,
    square,
)
from genview.images.folder import Labels
from genview.images.index import Index


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
        (Image.fromarray(np.array([[257 * 7, 65535]], dtype=">u2")), (7, 7, 7)),
        (Image.fromarray(np.full((2, 2), 200, dtype=np.int32)), (200, 200, 200)),
        (Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 77, dtype=np.float32)), (77, 77, 77)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)).convert("PA"), (255, 204, 204)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=[
        "grey",
        "bits",
        "clear",
        "half red",
        "palette",
        "16 bit",
        "16 bit big-endian",
        "32 bit",
        "32 bit of 8",
        "float",
        "float of 8",
        "clear palette",
        "cmyk",
    ],
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


@pytest.mark.parametrize(("kind", "within"), [("png", 0), ("tiff", 0), ("ppm", 0), ("jpeg", 2)])
def test_modes_survive_a_file(kind: str, within: int) -> None:
    deep = kind in ("png", "tiff", "ppm")
    image = (
        Image.fromarray(np.full((4, 4), 257 * 90, np.uint16)) if deep else Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    )
    expected = (90, 90, 90) if deep else (255, 0, 0)
    assert pixel(decode(encoded(image, kind))) == pytest.approx(expected, abs=within)


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header says it is larger: what is refused by its size is refused before decoding."""
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_what_is_no_usable_image_has_a_reason() -> None:
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "jpeg")
    for data, reason in (
        (b"", "empty"),
        (b"words", "not an image"),
        (whole[:300], "cannot be decoded"),
        (png_that_claims(9_500, 10_000), "cannot be decoded"),  # Pillow would warn here, and must not
        (png_that_claims(10_001, 10_000), "too many"),
        (png_that_claims(20_000, 10_000), "too many"),  # Pillow refuses this one itself
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


def test_one_class_folder_is_no_class(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "1.png")
    assert Folder(tmp_path).label(0) is None
    assert Folder(tmp_path, "folders").classes == ("cat",)


def test_a_damaged_file_has_its_key_and_a_closed_folder_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "0.jpg").touch()
    (tmp_path / "a" / "2.gif").symlink_to(tmp_path / "absent")
    folder = Folder(tmp_path)
    for i, reason in ((0, "empty"), (2, "No such file")):
        with pytest.raises(UnreadableImage, match=reason):
            folder.image(i)
    listed = os.scandir

    def closed(path: str) -> Any:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="Permission denied"):
        Folder(tmp_path)


def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "1.png")
    (tmp_path / "1.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"not UTF-8: 'caf\\udce9\.png'"):
        Folder(tmp_path)


def photos(root: Path, count: int = 3) -> Path:
    for name in ("cat", "dog"):
        for n in range(count):
            paint(root / name / f"{n}.png", 10 * n)
    return root


def listed(source: ImageSource) -> list[tuple[str, int | None]]:
    return [(source.key(i), source.label(i)) for i in range(len(source))]


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_a_folder_is_scanned_once_and_kept(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, keep = FolderImages(str(photos(tmp_path / "in")), labels=labels), tmp_path / "run" / "images"
    plain, kept = settings.build(), settings.build(keep)
    assert listed(kept) == listed(plain)
    assert kept.classes == plain.classes == (("cat", "dog") if labels == "auto" else ())
    paint(tmp_path / "in" / "eel" / "0.png")
    (tmp_path / "in" / "cat" / "1.png").unlink()
    walked = os.scandir
    monkeypatch.setattr(os, "scandir", None)
    again = settings.build(keep)
    assert listed(again) == listed(plain), "what came later is not seen"
    assert pixel(again.image(2)) == (20, 20, 20)
    with pytest.raises(UnreadableImage, match="No such file"):
        again.image(1)
    monkeypatch.setattr(os, "scandir", walked)
    shutil.rmtree(keep)
    assert len(settings.build(keep)) == 6
    assert settings.build(keep).key(5) == "eel/0.png"


def test_an_index_belongs_to_one_folder_and_a_failed_scan_binds_none(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    with pytest.raises(UserError, match="There is no folder"):
        FolderImages(str(tmp_path / "in")).build(keep)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="There is no image"):
        FolderImages(str(tmp_path / "in")).build(keep)
    assert not keep.exists()
    FolderImages(str(photos(tmp_path / "in"))).build(keep)
    for other in (FolderImages(str(photos(tmp_path / "other"))), FolderImages(str(tmp_path / "in"), labels="none")):
        with pytest.raises(UserError, match="made with other settings"):
            other.build(keep)
    for damage in ("{", "{}", '{"table": "../../x.arrow", "classes": []}'):
        (keep / "index.json").write_text(damage)
        with pytest.raises(UserError, match=r"index\.json is damaged|There is no .*keep/x\.arrow"):
            FolderImages(str(tmp_path / "in")).build(keep)


def test_a_scan_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genview.images.folder.TOLD_EVERY", 2)
    told: list[tuple[str, int, int]] = []
    FolderImages(str(photos(tmp_path / "in"))).build(None, lambda *words: told.append(words[:3]))
    assert told == [("scan", 2, 3), ("scan", 4, 5), ("scan", 6, 7), ("scan", 6, 6)]


def test_a_kept_index_is_pickled_as_its_name_and_read_by_workers(tmp_path: Path) -> None:
    source = FolderImages(str(photos(tmp_path / "in", 200)), limit=30).build(tmp_path / "keep")
    assert len(pickle.dumps(Folder(tmp_path / "in", keep=tmp_path / "keep"))) < 500
    plain = FolderImages(str(tmp_path / "in"), limit=30).build()
    assert listed(source) == listed(plain) == listed(pickle.loads(pickle.dumps(source)))
    assert listed(plain) == listed(pickle.loads(pickle.dumps(plain)))
    made = torch.cat([b.images for b in batches(source, size=4, batch=8, workers=2)])
    assert torch.equal(made, torch.cat([b.images for b in batches(plain, size=4, batch=8)]))


def test_parts_of_sources_keep_an_index_each(tmp_path: Path) -> None:
    parts: dict[str, SingleImages] = {
        "..": FolderImages(str(photos(tmp_path / "in"))),
        "b": DigitImages(part="test", limit=2),
    }
    keep = tmp_path / "run" / "images"
    first, again = (TogetherImages(parts).build(keep) for _ in range(2))
    assert listed(first) == listed(again)
    assert (first.key(0), len(first)) == ("../cat/0.png", 8)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["images"]
    assert (keep / "part-0" / "index.json").exists()


@given(st.sets(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), min_size=1))
def test_any_key_survives_an_index(names: set[str]) -> None:
    keys = sorted(names)
    with tempfile.TemporaryDirectory() as folder:
        labels = np.arange(len(keys), dtype=np.int32)
        index = Index.kept(Path(folder), {}, lambda: (keys, labels, tuple(keys)))
        assert [index.key(i) for i in range(len(index))] == keys
        assert [index.label(i) for i in range(len(index))] == list(range(len(keys)))
        assert index.classes == tuple(keys)


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
        ("phtos/deeper", "Did you mean 'photos'"),
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
    (tmp_path / "list.csv").write_text("\ufeffpath,label\na b/1.png,yes\n2.png,no\n\n", encoding="utf-8")
    listing = Listing(tmp_path / "list.csv", tmp_path)
    assert [(listing.key(i), listing.label(i)) for i in range(2)] == [("a b/1.png", 1), ("2.png", 0)]
    assert pixel(listing.image(0)) == (200, 200, 200)
    for text, message in (
        ("../secret.png\n", "leads out of the root"),
        ("/etc/passwd\n", "leads out of the root"),
        ("2.png\n2.png\n", "more than once"),
        ("2.png\n./2.png\n", "more than once"),
        ("2.png,a\n3.png\n", "1 of 2 images"),
        ("path,label,x\n2.png,a,1\n", "3 columns"),
        (",a\n", "without a path"),
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


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_squares_are_square_and_from_the_centre(width: int, height: int, size: int) -> None:
    assert square(Image.new("RGB", (width, height)), size).size == (size, size)


@pytest.mark.parametrize("shape", [(300_000, 1), (1, 300_000)])
def test_a_strip_does_not_fill_the_memory(shape: tuple[int, int]) -> None:
    strip = Image.new("RGB", shape, "black")
    for n in range(-9, 9):
        strip.putpixel((shape[0] // 2 + n, 0) if shape[1] == 1 else (0, shape[1] // 2 + n), (255, 255, 255))
    assert np.asarray(square(strip, 224)).min() == 255


def test_squares_agree_with_torchvision() -> None:
    image = Image.effect_noise((60, 90), 60).convert("RGB")
    expected = v2.CenterCrop(24)(v2.Resize(24, v2.InterpolationMode.BICUBIC)(image))
    assert np.array_equal(np.asarray(square(image, 24)), np.asarray(expected))


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
    assert len(TypeAdapter(kind).validate_python({"kind": "digits", "part": "test", "limit": 7}).build()) == 7
    for content, message in (
        ({"kind": "folder", "rooot": "x"}, "rooot"),
        ({"kind": "together", "parts": {"a": {"kind": "digits", "prt": "test"}}}, "prt"),
        ({"kind": "fodler", "root": "x"}, "folder"),
    ):
        with pytest.raises(UserError, match=message):
            parse(kind, content, "test")


def test_the_real_archives(data: Path) -> None:
    cifar = Archives((str(data / "cifar10" / "train-*.zip"),))
    nette = Archives((str(data / "imagenette224" / "train-*.tar"),))
    assert (len(cifar), len(cifar.classes), len(nette), len(nette.classes)) == (25_000, 10, 2_500, 10)
    names = (data / "cifar10" / "classes.txt").read_text().split()
    assert list(cifar.classes) == names, "labels agree with the usual ones"
    assert (cifar.image(24_999).size, nette.image(2_499).mode) == ((32, 32), "RGB")
