"""Durations and sizes as users write them."""

from __future__ import annotations

import pytest

from genview.errors import UserError
from genview.training.duration import bytes_of, steps_of


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 epochs", 30),
        ("1 epoch", 10),
        ("7 steps", 7),
        ("100 images", 10),
        ("95 images", 10),
        ("0.5 epochs", 5),
        ("0 epochs", 0),
    ],
)
def test_durations(text: str, steps: int) -> None:
    assert steps_of(text, images=105, batch=10) == steps


@pytest.mark.parametrize(
    ("text", "hint"), [("3 epocks", "'epochs'"), ("three", "Write a number"), ("", "Write a number")]
)
def test_durations_that_cannot_be_read(text: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        steps_of(text, images=100, batch=10)


@pytest.mark.parametrize(("text", "count"), [("2 GB", 2e9), ("0 GB", 0), ("0.5 mb", 5e5)])
def test_sizes(text: str, count: int) -> None:
    assert bytes_of(text) == count
    with pytest.raises(UserError, match="'2 GB'"):
        bytes_of("2 gallons")
