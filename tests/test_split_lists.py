"""Lists that say which images of torchvision's sets are trained on and tested with, in the place of a draw."""

from __future__ import annotations

from pathlib import Path

import pytest

import sets
from genview.errors import UserError
from genview.evaluation import name_of as judged_name
from genview.evaluation.transfer import NamedSet, OwnSet, Transfer
from genview.experiment.facts import name_of
from genview.images import TorchvisionImages


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    sets.sun(folder)
    sets.caltech(folder)
    return folder


def partition(folder: Path, number: int = 0) -> tuple[str, str]:
    """Write lists as the authors of SUN397 publish them: three images of each class, then two others."""
    names = [[f"/{name}/sun_{5 * number + n:03d}.jpg" for name in ("c/church/outdoor", "a/abbey")] for n in range(5)]
    files = folder / f"Training_{number:02d}.txt", folder / f"Testing_{number:02d}.txt"
    for file, rows in zip(files, (names[:3], names[3:]), strict=True):
        sets.text(file, [name for row in rows for name in row])
    return str(files[0]), str(files[1])


def test_lists_take_the_place_of_a_draw(root: Path, tmp_path: Path) -> None:
    for part, file, numbers in zip(("train", "test"), partition(tmp_path), ((0, 1, 2), (3, 4)), strict=True):
        source = TorchvisionImages(str(root), name="SUN397", part=part, list=file).build()  # type: ignore[arg-type]
        names = [f"SUN397/{name}/sun_{n:03d}.jpg" for name in ("a/abbey", "c/church/outdoor") for n in numbers]
        assert [source.key(i) for i in range(len(source))] == names, "in the order of the set"
        assert [source.label(i) for i in range(len(source))] == [0] * len(numbers) + [1] * len(numbers)
        assert source.classes == ("abbey", "church/outdoor")
        assert name_of(TorchvisionImages(str(root), name="SUN397", list=file)) == f"SUN397 ({Path(file).stem})"


def test_lists_from_windows_and_of_caltechs(root: Path, tmp_path: Path) -> None:
    """A mark in front, carriage returns, empty lines and no '/' in front."""
    file = tmp_path / "own.txt"
    file.write_bytes(b"\xef\xbb\xbfyin_yang/image_0002.jpg\r\n\r\n /anchor/image_0001.jpg \r\n")
    source = TorchvisionImages(str(root), name="Caltech101", list=str(file)).build()
    folder = "caltech101/101_ObjectCategories"
    keys = [f"{folder}/anchor/image_0001.jpg", f"{folder}/yin_yang/image_0002.jpg"]
    assert [source.key(i) for i in range(len(source))] == keys


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["/a/abbey/sun_000.jpg", "/a/abey/sun_001.jpg", "/x.jpg"],
            r"^2 of 3 lines of .*own\.txt name no image .*first",
        ),
        (["/a/abey/sun_001.jpg"], r"first 'a/abey/sun_001\.jpg'\. .*Did you mean 'a/abbey/sun_001\.jpg'\?"),
        (
            ["SUN397/a/abbey/sun_001.jpg"],
            r"below SUN397, such as 'a/abbey/sun_000\.jpg'\. Did you mean 'a/abbey/sun_001",
        ),
        (["../SUN397/a/abbey/sun_000.jpg"], "1 of 1 lines"),
        (["/ClassName.txt"], r"'ClassName\.txt'\. Paths begin below SUN397, such as 'a/abbey/sun_000\.jpg'\.$"),
        (["/a/abbey/sun_000.jpg", "a/abbey/sun_000.jpg"], r"has 'a/abbey/sun_000\.jpg' more than once"),
        (["", " "], "names no image"),
    ],
)
def test_lists_that_do_not_fit(root: Path, tmp_path: Path, lines: list[str], said: str) -> None:
    sets.text(tmp_path / "own.txt", lines)
    with pytest.raises(UserError, match=said):
        TorchvisionImages(str(root), name="SUN397", list=str(tmp_path / "own.txt")).build()


def test_lists_that_cannot_be_read_or_are_not_for_the_set(root: Path, tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff")
    for name in ("absent.txt", "image.txt"):
        with pytest.raises(UserError, match=rf"The list .*{name} cannot be read"):
            TorchvisionImages(str(root), name="SUN397", list=str(tmp_path / name)).build()
    for name in ("DTD", "CIFAR10"):
        with pytest.raises(
            UserError, match=rf"{name} has a split of its own, and lists are for Caltech101 and SUN397"
        ):
            TorchvisionImages(str(root), name=name, list="own.txt")  # type: ignore[arg-type]


def test_a_partition_by_lists(root: Path, tmp_path: Path) -> None:
    """What was measured on one partition is not taken for another's, be it another file or the file itself."""
    named = NamedSet("SUN397", str(root), "torchvision", False, *partition(tmp_path))
    train, _, test = named.split(0, lambda *_: None)
    assert (len(train), len(test)) == (6, 4)
    one, place = Transfer((named,), l2=(1e-3,), iterations=20), tmp_path / "out"
    assert dict(one.run(sets.subject(place)))["transfer/SUN397/linear/top1"] == 1.0
    drawn = Transfer((NamedSet("SUN397", str(root)),), l2=(1e-3,), iterations=20)
    other = Transfer((NamedSet("SUN397", str(root), "torchvision", False, *partition(tmp_path, 1)),), l2=(1e-3,))
    assert len({judged_name(each) for each in (one, drawn, other)}) == 3
    with pytest.raises(UserError, match="made with other settings"):
        list(drawn.run(sets.subject(place)))
    assert named.test_list is not None
    with Path(named.test_list).open("a") as file:
        file.write("/a/abbey/sun_101.jpg\n")
    with pytest.raises(UserError, match=r"found\.SUN397"):
        list(one.run(sets.subject(place)))


def test_several_partitions_are_sets_of_ones_own(root: Path, tmp_path: Path) -> None:
    several = []
    for number in (0, 1):
        train, test = (TorchvisionImages(str(root), name="SUN397", list=file) for file in partition(tmp_path, number))
        several.append(OwnSet(f"SUN397-{number}", train, test))
        assert [len(part) for part in several[-1].split(0, lambda *_: None) if part is not None] == [6, 4]
    found = dict(Transfer(tuple(several), l2=(1e-3,), iterations=20).run(sets.subject(tmp_path / "out")))
    assert list(found) == [
        f"transfer/{name}" for name in ("mean/linear", *(f"SUN397-{n}/linear/top1" for n in (0, 1)))
    ]


def test_a_list_for_a_set_whose_images_are_gone(tmp_path: Path) -> None:
    sets.text(tmp_path / "SUN397" / "ClassName.txt", ["/a/abbey"])
    train, _ = partition(tmp_path)
    with pytest.raises(UserError, match=r"6 of 6 lines .* below SUN397, such as 'class/image\.jpg'"):
        TorchvisionImages(str(tmp_path), name="SUN397", list=train).build()


def test_lists_that_make_no_partition(root: Path, tmp_path: Path) -> None:
    train, test = partition(tmp_path)
    for lists in ({"train_list": train}, {"test_list": test}):
        with pytest.raises(UserError, match="SUN397 has one list: give it train_list and test_list, or neither"):
            NamedSet("SUN397", str(root), **lists)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Food101 has a split of its own"):
        NamedSet("Food101", str(root), train_list=train, test_list=test)
    with Path(test).open("a") as file:
        file.write("/a/abbey/sun_001.jpg\n")
    with pytest.raises(
        UserError, match=r"1 images are in both .*Training_00.* such as 'SUN397/a/abbey/sun_001\.jpg'"
    ):
        NamedSet("SUN397", str(root), train_list=train, test_list=test).split(0, lambda *_: None)
