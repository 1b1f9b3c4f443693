"""Small pictures for pages, encoded once and then only copied."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

EXACT = 48
"""Up to this side a picture is kept as PNG: so few pixels cost little, and JPEG would blur them."""


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Return the centre square of an image, at most `side` pixels wide and never enlarged, as a PNG or JPEG file."""
    side = min(side, *image.size)
    small = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png" if side <= EXACT else "jpeg"
    small.save(buffer, kind, quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
