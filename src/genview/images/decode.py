"""Any image that Pillow reads, as RGB: grey, palette, CMYK, 16-bit, alpha, rotated by EXIF."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from genview.images.source import UnreadableImage

MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: they are mistakes or attacks, and fill the memory."""
TURNED = (5, 6, 7, 8)
"""Orientations in EXIF that swap width and height."""


class ImageFile:
    """The bytes of an image file of which only the header has been read.

    `size` is the width and height of the upright image in pixels.

    Raises:
        UnreadableImage: the data are empty, no image, or of more than 100 million pixels.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        with _readable():
            self._header: Image.Image | None = _header(data)
            turned = self._header.getexif().get(ExifTags.Base.Orientation, 1) in TURNED
            width, height = self._header.size
        self.size = (height, width) if turned else (width, height)

    def image(self, shrink: int = 1) -> Image.Image:
        """Decode to mode RGB, upright.

        With `shrink` 2, 4 or 8, a format that can be decoded at a part of its size, which is JPEG, comes with its
        sides divided by up to that much and rounded up, at a part of the cost; any other comes whole.

        Raises:
            UnreadableImage: the data are damaged or truncated.
        """
        with _readable():
            image = self._header or _header(self._data)
            self._header = None  # what is decoded once cannot be decoded at another size
            if shrink > 1:
                image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
            image.load()
            return rgb(image)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode as `image` does, to uint8 H×W×3."""
        return np.array(self.image(shrink))


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to mode RGB, upright.

    Raises:
        UnreadableImage: the data are empty, truncated, no image, or of more than 100 million pixels.
    """
    return ImageFile(data).image()


def _header(data: bytes) -> Image.Image:
    if not data:
        raise UnreadableImage("the file is empty")
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableImage("it has too many pixels")
    return image


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what Pillow raises into the reason why an image cannot be used."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; size is checked here, and metadata do not matter.
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("it has too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"cannot be decoded: {error}") from error


def rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and in mode RGB; transparent parts are laid over white, 16 bits scaled to 8.

    An image that is so already is returned itself.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 bits to 8; integers and floats that already lie within 0 to 255 stay as they are."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
