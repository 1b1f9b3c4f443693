"""Second views that are other images of the same class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Painted
from genview.errors import UserError
from genview.experiment import Experiment, Stages, parse
from genview.pairs import NOT_GENERATED
from genview.pairs.same_class import Classmates


class Unlabelled(Painted):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.classes = ()


def place(source: Painted, image: np.ndarray) -> int:
    """Return which image of the source this is."""
    return next(i for i in range(len(source)) if np.array_equal(image, np.asarray(source.image(i))))


@given(st.integers(1, 12), st.sets(st.integers(0, 11)), st.integers(0, 2**63), st.integers(1, 5))
def test_others_of_the_class_among_those_that_are_used(count: int, used: set[int], number: int, wanted: int) -> None:
    source, indices = Painted(count, size=8), sorted(i for i in used if i < count)
    mates = Classmates(source, np.array(indices, np.int64))
    for i in range(count):
        found = mates.find(source.key(i), number, wanted)
        allowed = [j for j in indices if j != i and source.label(j) == source.label(i)] if i in indices else []
        places = [place(source, view.image.pixels()) for view in found]
        assert len(set(places)) == len(places) == min(wanted, len(allowed))
        assert set(places) <= set(allowed)
        assert all(view.level == NOT_GENERATED for view in found)


def test_each_is_drawn_as_often_as_any_other() -> None:
    source = Painted(15)
    mates = Classmates(source, range(15))
    drawn = Counter(place(source, mates.find(source.key(4), n)[0].image.pixels()) for n in range(400))
    assert set(drawn) == {1, 7, 10, 13}
    assert min(drawn.values()) > 70


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="needs labelled images"):
        Classmates(Unlabelled(3), range(3))


def test_an_experiment_trains_on_them_and_the_page_says_so(tmp_path: Path) -> None:
    source = Painted(24)
    for i in range(len(source)):
        path = tmp_path / "images" / source.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(i).save(path)
    content: dict[str, Any] = {
        "images": {"kind": "folder", "root": str(tmp_path / "images")},
        "views": {"kind": "same_class"},
        "pairs": {"recipe": "small", "size": 16},
        "method": {"kind": "simsiam", "projection": 16, "bottleneck": 8},
        "training": {
            "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}},
            "length": "2 steps",
            "batch": 6,
            "workers": 0,
        },
        "evaluation": [],
    }
    stages = Stages.open(parse(Experiment, content, "test"), tmp_path / "run")
    stages.pretrain(lambda *_: None)
    stages.report(lambda *_: None)
    assert "other images" in stages.run.page.read_text()
    pairs = stages._pairs(lambda *_: None)
    found = [pairs[0, i] for i in range(len(pairs))]
    assert all(sorted(item.draws) == [NOT_GENERATED, 0] for item in found)
