"""Images opened before they are decoded, and images held decoded in memory that processes share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import Painted
from genview.images import (
    Archives,
    Folder,
    ImageFile,
    ImageSource,
    Listing,
    Subset,
    Together,
    UnreadableImage,
    decode,
    held,
    opened,
    rgb,
)
from genview.images.held import Held
from genview.pairs import Pairs, PairSettings
from genview.pairs.external import Joined


def jpeg(width: int = 90, height: int = 61, turned: bool = False) -> bytes:
    """A ramp, red at the right and green at the bottom; `turned`: stored on its side, with the EXIF to say so."""
    rows, columns = np.mgrid[:height, :width]
    values = np.stack((255 * columns / width, 255 * rows / height, 0 * rows), axis=-1)
    picture, exif = Image.fromarray(values.astype(np.uint8)), Image.Exif()
    if turned:
        picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
    picture.save(data := io.BytesIO(), "JPEG", quality=95, exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("turned", [False, True])
def test_an_opened_image_tells_its_size_and_decodes_at_a_part_of_it(turned: bool) -> None:
    file = ImageFile(jpeg(turned=turned))
    assert file.size == (90, 61)
    for shrink in (4, 1, 2, 8):
        found = file.pixels(shrink)
        assert found.shape == (-(-61 // shrink), -(-90 // shrink), 3), "as often as one likes, at any size"
        assert found[-1, -1, 0] > 200
        assert found[-1, 0, 1] > 200
        assert found[0, 0].max() < 60
    assert np.array_equal(file.pixels(), np.asarray(decode(jpeg(turned=turned))))


def test_other_formats_are_decoded_whole() -> None:
    Image.new("RGB", (40, 30), (9, 8, 7)).save(data := io.BytesIO(), "PNG")
    assert ImageFile(data.getvalue()).pixels(4).shape == (30, 40, 3)


def test_damage_behind_the_header_is_met_when_the_image_is_decoded() -> None:
    file = ImageFile(jpeg(turned=False)[:-200])
    assert file.size == (90, 61)
    with pytest.raises(UnreadableImage, match="truncated"):
        file.pixels()
    with pytest.raises(UnreadableImage, match="not an image"):
        ImageFile(b"not an image")


def test_an_image_that_is_upright_and_rgb_is_not_copied() -> None:
    image = Image.new("RGB", (4, 4))
    assert rgb(image) is image


def test_every_source_of_files_opens_images_before_it_decodes_them(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(jpeg())
    (tmp_path / "list.csv").write_text("a.jpg\n")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos/a.jpg", "a.jpg")
    folder = Folder(tmp_path / "photos")
    sources: list[ImageSource] = [
        folder,
        Archives((str(tmp_path / "photos.tar"),)),
        Listing(tmp_path / "list.csv", tmp_path / "photos"),
        Subset(folder, [0]),
        Together({"one": folder}),
        Joined(folder, folder),
    ]
    assert [opened(source, 0).pixels(2).shape for source in sources] == [(31, 45, 3)] * len(sources)
    painted = opened(Painted(), 3)
    assert painted.size == (32, 32)
    assert np.array_equal(painted.pixels(4), np.asarray(Painted().image(3)))


class Files(Painted):
    """Painted images as files of different sizes, number 2 damaged behind its header and number 5 before it."""

    def __init__(self, count: int = 9) -> None:
        super().__init__(count)
        self.decoded = 0

    def opened(self, i: int) -> ImageFile:
        if i == 5:
            raise UnreadableImage("gone")
        self.decoded += 1
        data = jpeg(20 + 3 * i, 30 - i)
        return ImageFile(data[:-60] if i == 2 else data)

    def image(self, i: int) -> Image.Image:
        return self.opened(i).image()


SIZE = sum(3 * (20 + 3 * i) * (30 - i) for i in range(9) if i != 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_held_images_are_those_of_the_source(workers: int) -> None:
    told: list[tuple[str, int, int]] = []
    source = Files()
    found = held(source, SIZE, lambda what, done, total, _note: told.append((what, done, total)), workers)
    assert isinstance(found, Held)
    source.decoded = 0
    assert (len(found), found.classes) == (9, source.classes)
    for i in range(9):
        assert (found.key(i), found.label(i)) == (source.key(i), source.label(i))
        if i in (2, 5):
            for read in (found.image, found.opened):
                with pytest.raises(UnreadableImage, match="truncated" if i == 2 else "gone"):
                    read(i)
        else:
            expected = np.asarray(decode(jpeg(20 + 3 * i, 30 - i)))
            assert np.array_equal(np.asarray(found.image(i)), expected)
            assert np.array_equal(found.opened(i).pixels(), expected)
    assert source.decoded == 0, "nothing is decoded twice"
    assert told[-1] == ("decode", 9, 9)


def test_what_does_not_fit_is_left_as_it_is() -> None:
    source = Files()
    assert held(source, SIZE - 1) is source
    many = Files(10_000)
    assert held(many, SIZE) is many
    assert many.decoded < 20, "it stops where the budget ends"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_share_one_buffer(start: str) -> None:
    """What is written into it here after the workers have begun is what they read."""
    found = held(Painted(4), 4 * 3 * 32 * 32)
    assert isinstance(found, Held)
    pairs = Pairs(found, PairSettings(recipe="small", size=32), seed=0)
    loader = DataLoader(
        pairs,
        sampler=[(0, 1), (0, 2), (0, 3)],
        batch_size=None,
        num_workers=1,
        prefetch_factor=1,
        multiprocessing_context=start,
    )
    items = iter(loader)
    assert torch.equal(next(items).views[0], pairs[0, 1].views[0])
    found.place(3)[:] = 7  # the worker is asked for the third when the second is taken
    next(items)
    assert int(next(items).views[0].float().std()) == 0


def test_a_view_of_a_held_image_copies_nothing() -> None:
    found = held(Painted(4), 4 * 3 * 32 * 32)
    assert isinstance(found, Held)
    assert np.shares_memory(found.opened(2).pixels(), found.opened(2).pixels())
