"""Files of views made elsewhere find their images by each layout and by a mapping; nothing is guessed."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Painted
from echo import quiet
from genview.errors import UserError
from genview.generators import Account, ImportSettings, ViewTable
from genview.generators.imported import files_in
from genview.generators.matching import Names, matches
from genview.noise import UNKNOWN
from made_elsewhere import COUNT, FLAT, MIRRORED, Held, mirrored, take, view


class Named(Painted):
    """Images with the given keys."""

    def __init__(self, *keys: str) -> None:
        super().__init__(len(keys))
        self.keys = keys

    def key(self, i: int) -> str:
        return self.keys[i]


def number(views: ViewTable, key: str, draw: int = 0) -> int:
    (found,) = views.find(key, draw)
    return round(float(found.image.pixels()[..., 0].mean()) / 20)


def test_a_mirrored_tree_has_the_keys_of_its_images_but_for_the_extension(tmp_path: Path) -> None:
    tree = mirrored()
    del tree["colour1/0004.jpg"]
    for name, data in {**tree, "colour0/more.jpg": view(0), "0003.jpg": view(0)}.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    account, views, bad = take(tmp_path / "views", files_in(tmp_path / "tree"))
    assert account == Account(files=10, matched=8, stray=2, bare=1)
    assert str(account) == "views matched: 8 (files: 10); files without an image: 2; images without a view: 1"
    assert bad == []
    assert views.find(Painted().key(4), 0) == []
    assert [number(views, Painted().key(i)) for i in range(COUNT) if i != 4] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert set(views.levels) == {UNKNOWN}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_of_base_names_are_flat(kind: str, tmp_path: Path) -> None:
    flat = {PurePosixPath(name).name: data for name, data in mirrored(".png", "png").items()}
    parts = list(flat.items())
    (tmp_path / "from").mkdir()
    for n, members in enumerate((parts[:5], parts[5:])):
        path = tmp_path / "from" / f"part-{n}.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in members:
                    archive.writestr(f"prob1/{name}", data)
            continue
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                (info := tarfile.TarInfo(f"prob1/{name}")).size = len(data)
                tar.addfile(info, io.BytesIO(data))
    account, views, _ = take(tmp_path / "views", files_in(tmp_path / "from"), FLAT)
    assert account == Account(9, 9, 0, 0)
    assert [number(views, Painted().key(i)) for i in range(COUNT)] == list(range(COUNT))
    with pytest.raises(
        UserError, match=r"None of the 5 files .* first file is 'prob1/0000.png', .* 'colour0/0000.png'"
    ):
        take(tmp_path / "other", files_in(tmp_path / "from" / f"part-0.{kind}"), MIRRORED)


def test_a_base_name_of_two_images_is_refused_where_a_file_has_it(tmp_path: Path) -> None:
    source = Named("a/1.png", "b/1.png", "a/2.png")
    account, _, _ = take(tmp_path / "views", Held({"2.jpg": view(1)}), FLAT, source)
    assert account == Account(1, 1, 0, 2)
    with pytest.raises(UserError, match=r"files that fit several images each, such as 'x/1.jpg'\..*file,key"):
        take(tmp_path / "more", Held({"x/1.jpg": view(1), "2.jpg": view(1)}), FLAT, source)
    with pytest.raises(UserError, match=r"images that several files fit, such as 'a/2.png'\."):
        take(tmp_path / "more", Held({"x/2.jpg": view(1), "2.png": view(1)}), FLAT, source)
    with pytest.raises(UserError, match=r"several images each, such as 'a.jpg'"):
        take(tmp_path / "more", Held({"a.jpg": view(1)}), MIRRORED, Named("a.png", "a.webp"))
    account, _, _ = take(tmp_path / "more", Held({"a/2.jpg": view(1)}), MIRRORED, source)
    assert account.matched == 1, "what was refused before has bound no folder"


def mapping(folder: Path, text: str) -> ImportSettings:
    (folder / "mapping.csv").write_text(text, encoding="utf-8")
    return ImportSettings("mapping", folder / "mapping.csv", shard=4)


def test_a_mapping_numbers_the_files_of_an_image_as_draws(tmp_path: Path) -> None:
    held = Held({f"{i}.png": view(i) for i in range(7)})
    rows = "file,key\n3.png,colour1/0001.png\n0.png,colour0/0000.png\n./1.png,colour1/0001.png\n"
    rows += "9.png,colour1/0001.png\n4.png,nobody.png\n2.png,colour1/0001.png\n"
    account, views, _ = take(tmp_path / "views", held, mapping(tmp_path, rows))
    assert account == Account(files=7, matched=4, stray=3, bare=7, absent=1)
    assert [number(views, "colour1/0001.png", draw) for draw in range(3)] == [3, 1, 2]
    assert [number(views, "colour0/0000.png", draw) for draw in range(3)] == [0, 0, 0]


def test_a_mapping_may_give_draws_and_levels(tmp_path: Path) -> None:
    held = Held({f"{i}.png": view(i) for i in range(4)})
    rows = (
        "draw,level,key,file\n1,300,colour1/0001.png,1.png\n0,,colour1/0001.png,2.png\n5,0,colour0/0000.png,2.png\n"
    )
    account, views, _ = take(tmp_path / "views", held, mapping(tmp_path, rows))
    assert account == Account(files=4, matched=3, stray=2, bare=7)
    first, second = views.find("colour1/0001.png", 0, count=2)
    assert (first.level, second.level) == (UNKNOWN, 300)
    assert (number(views, "colour1/0001.png"), number(views, "colour1/0001.png", 1)) == (2, 1)
    assert views.draws[list(views.rows("colour0/0000.png"))] == 5


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("file,kez\n", "a column 'kez'.*Did you mean 'key'"),
        ("file,draw\n", "needs a header with file and key"),
        ("file,key\n0.png\n", "Line 2 of .* not as many cells"),
        ("file,key,level\n0.png,colour0/0000.png,1000\n", "Line 2 of .*from 0 to 999, or blank, not 1000"),
        ("file,key,level\n0.png,colour0/0000.png,-2\n", "from 0 to 999, or blank, not -2"),
        ("file,key,draw\n0.png,colour0/0000.png,\n", "Line 2 of .*a draw may not"),
        ("file,key,draw\n0.png,colour0/0000.png,-1\n", "from 0 on, not -1"),
        ("file,key,draw\n" + "0.png,colour0/0000.png,1\n" * 2, "draw 1 of 'colour0/0000.png' more than once"),
        ("file,key\n9.png,colour0/0000.png\n", "None of the 1 files"),
    ],
)
def test_a_mapping_that_cannot_be_used_says_where(rows: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        take(tmp_path / "views", Held({"0.png": view(0)}), mapping(tmp_path, rows))
    assert not (tmp_path / "views").exists()


def test_settings_that_do_not_belong_together(tmp_path: Path) -> None:
    held = Held({"0.png": view(0)})
    with pytest.raises(UserError, match="with layout 'mapping', and with no other"):
        take(tmp_path / "views", held, ImportSettings("mapping"))
    with pytest.raises(UserError, match="with layout 'mapping', and with no other"):
        take(tmp_path / "views", held, ImportSettings("flat", tmp_path / "mapping.csv"))
    with pytest.raises(UserError, match=r"absent.csv cannot be read: No such file"):
        take(tmp_path / "views", held, ImportSettings("mapping", tmp_path / "absent.csv"))
    with pytest.raises(UserError, match="at least 1 view, not 0"):
        take(tmp_path / "views", held, replace(MIRRORED, shard=0))


@given(
    st.sets(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=3), min_size=1, max_size=30), st.data()
)
def test_names_are_found_as_a_dictionary_finds_them(names: set[str], data: st.DataObject) -> None:
    known = data.draw(st.lists(st.sampled_from(sorted(names)), max_size=30))
    table = Names(len(known), known.__getitem__, lambda _: None)
    place, count = table.places(sorted(names))
    for name, where, times in zip(sorted(names), place.tolist(), count.tolist(), strict=True):
        assert times == known.count(name)
        assert where == (known.index(name) if times else -1)


def test_two_names_of_one_digest_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "genview.generators.matching.digests", lambda names: [np.array([7 for _ in names], np.uint64)]
    )
    table = Names(1, lambda _: "a", lambda _: None)
    place, count = table.places(["b", "a"])
    assert (place.tolist(), count.tolist()) == ([-1, 0], [0, 1])


def test_many_names_are_matched_in_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genview.generators.matching.CHUNK", 3)
    source, held = Named(*(f"{i}.png" for i in range(20))), Held({f"{i}.jpg": b"" for i in range(25, 4, -1)})
    found = matches(source, held, "mirrored", None, quiet)
    assert [(held.key(f), source.key(i)) for f, i in zip(found.file, found.image, strict=True)] == [
        (f"{i}.jpg", f"{i}.png") for i in range(19, 4, -1)
    ]
    assert (found.stray, found.bare) == (6, 5)
