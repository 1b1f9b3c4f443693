"""Random windows for training a generator: whole, reproducible, and from whatever images there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Painted
from genview.errors import UserError
from genview.generators.windows import Windows, together
from genview.images import Folder


def windows_of(source: Painted) -> Windows:
    return Windows(source, size=32, zoom=2.0, flip=0.5, seed=0)


def test_windows_follow_seed_epoch_and_key() -> None:
    windows = windows_of(Painted(4, size=64))
    pixels = windows[0, 0].pixels
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(pixels, windows_of(Painted(4, size=64))[0, 0].pixels)
    assert not torch.equal(pixels, windows[1, 0].pixels)
    assert not torch.equal(pixels, Windows(Painted(4, size=64), 32, 2.0, 0.5, seed=1)[0, 0].pixels)


def test_in_the_place_of_an_unreadable_image_comes_the_next() -> None:
    broken = Painted(4, broken=(0, 1))
    window = windows_of(broken)[0, 0]
    assert torch.equal(window.pixels.amax(dim=(1, 2)), windows_of(Painted(4))[0, 2].pixels.amax(dim=(1, 2)))
    assert window.unreadable == ((broken.key(0), "made so"), (broken.key(1), "made so"))
    batch = together([window, windows_of(broken)[0, 2], windows_of(broken)[0, 1]])
    assert batch.pixels.shape == (3, 3, 32, 32)
    assert [key for key, _ in batch.unreadable] == [broken.key(0), broken.key(1), broken.key(1)]
    with pytest.raises(UserError, match="None of the 2 images can be read"):
        windows_of(Painted(2, broken=(0, 1)))[0, 0]


def test_a_window_of_an_image_of_its_own_size_is_the_image() -> None:
    whole = Windows(Painted(4), size=32, zoom=3.0, flip=0.0, seed=0)[0, 1].pixels
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), np.asarray(Painted(4).image(1)))


def test_images_from_8_to_8000_pixels_in_one_folder(tmp_path: Path) -> None:
    """A ramp in the centre square looks the same at every size."""
    for height, width in ((8, 8), (33, 33), (500, 500), (1000, 8000)):
        ramp = np.zeros(width, np.uint8)
        ramp[(width - height) // 2 :][:height] = np.linspace(0, 255, height)
        Image.fromarray(np.broadcast_to(ramp, (height, width)).copy()).save(tmp_path / f"{width:04d}.jpg", quality=95)
    (tmp_path / "none.jpg").write_bytes(b"")
    Image.new("RGB", (3, 900), "red").save(tmp_path / "strip.jpg")
    source = Folder(tmp_path)
    windows = Windows(source, size=32, zoom=1.0, flip=0.0, seed=0)
    expected = torch.from_numpy(np.linspace(0, 255, 32)).expand(3, 32, 32)
    for i in range(4):
        assert (windows[0, i].pixels - expected).abs().mean() < 8, source.key(i)
    assert windows[0, 4].unreadable == (("none.jpg", "the file is empty"),)
    red = windows[0, 5].pixels.float().mean(dim=(1, 2))
    assert red[0] > 250
    assert red[1:].max() < 5


def test_a_large_photograph_is_decoded_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    asked = []
    draft = Image.Image.draft

    def noted(image: Image.Image, mode: str | None, size: tuple[int, int] | None) -> object:
        asked.append(size)
        return draft(image, mode, size)

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", noted)
    Windows(Folder(tmp_path), size=64, zoom=1.0, flip=0.0, seed=0)[0, 0]
    assert asked == [(320, 240)], "halved: a quarter would leave less than twice the window"
