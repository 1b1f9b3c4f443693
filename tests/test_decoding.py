"""Every mode Pillow reads becomes RGB rightly; what is no image has a reason; squares are cut from the centre."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from genview.images import UnreadableImage, decode, rgb, square
from image_files import encoded, pixel


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
