"""Small image files for the tests of sources, and the colour of a pixel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "png", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)
