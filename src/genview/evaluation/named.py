"""Progress under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from genview.evaluation.features import Reading


def named(reading: Reading, what: str) -> Reading:
    """Return the same reading, which tells of `what` instead of features."""
    tell = reading.tell
    if tell is None:
        return reading
    return replace(reading, tell=lambda _what, done, total, note: tell(what, done, total, note))
