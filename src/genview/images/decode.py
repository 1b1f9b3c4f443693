"""Any image that Pillow reads, as RGB: grey, palette, CMYK, 16-bit, alpha, rotated by EXIF."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genview.images.source import UnreadableImage

MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: they are mistakes or attacks, and fill the memory."""


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to mode RGB, upright.

    Raises:
        UnreadableImage: the data are empty, truncated, no image, or of more than 100 million pixels.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; size is checked here, and metadata do not matter.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                raise UnreadableImage("it has too many pixels")
            image.load()
            return rgb(image)
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("it has too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"cannot be decoded: {error}") from error


def rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and in mode RGB; transparent parts are laid over white, 16 bits scaled to 8."""
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
