"""Durations and sizes in the unit that suits: '100 epochs', '5000 steps' or '1000000 images'; '2 GB'."""

from __future__ import annotations

import math
import re

from genview.errors import UserError, nearest

UNITS = ("epochs", "steps", "images")
BYTES = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


def steps_of(duration: str, *, images: int, batch: int) -> int:
    """Return a duration in optimizer steps.

    Args:
        duration: a number and a unit, as in '100 epochs'.
        images: images in an epoch.
        batch: images in a step; an epoch has images // batch steps, as what does not fill a batch is left out.

    Raises:
        UserError: the text is no duration, or an epoch has no full batch.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]+)\s*", duration)
    unit = found.group(2) if found else ""
    unit = unit if unit.endswith("s") else unit + "s"
    if not found or unit not in UNITS:
        hint = nearest(unit, UNITS)
        raise UserError(
            f"'{duration}' is no duration.{hint} Write a number and one of {', '.join(UNITS)}: '100 epochs'."
        )
    if images < batch:
        raise UserError(
            f"There are {images} images to train on, fewer than one batch of {batch}. "
            f"Use more images or lower training.batch to {max(images // 2, 1)} or less."
        )
    number = float(found.group(1))
    steps = {"epochs": number * (images // batch), "steps": number, "images": number / batch}[unit]
    return max(1, math.ceil(steps)) if number else 0


def bytes_of(size: str) -> int:
    """Return a size such as '2 GB' in bytes.

    Raises:
        UserError: the text is no size.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", size)
    if not found or found.group(2).upper() not in BYTES:
        raise UserError(f"'{size}' is no size. Write a number and one of {', '.join(BYTES)}: '2 GB'.")
    return int(float(found.group(1)) * BYTES[found.group(2).upper()])
