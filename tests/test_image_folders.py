"""Folders of images and listings: labels, faults by name, and the index that a scan leaves behind."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genview.errors import UserError
from genview.images import (
    DigitImages,
    Folder,
    FolderImages,
    ImageSource,
    Listing,
    SingleImages,
    TogetherImages,
    UnreadableImage,
    batches,
)
from genview.images.folder import Labels
from genview.images.index import Index
from image_files import paint, pixel


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
