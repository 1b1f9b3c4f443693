"""Second views that are other images of the same class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Painted
from genview.errors import UserError
from genview.experiment import Experiment, Stages, parse
from genview.images.origin import FoundView
from genview.pairs import NOT_GENERATED, SameClassViews
from genview.pairs.same_class import Classmates


class Unlabelled(Painted):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.classes = ()


def reader(source: Painted) -> Callable[[FoundView], int]:
    """Return what tells which image of the source a view shows."""
    places = {np.asarray(source.image(i)).tobytes(): i for i in range(len(source))}
    return lambda view: places[np.ascontiguousarray(view.image.pixels()).tobytes()]


@given(st.integers(1, 12), st.sets(st.integers(0, 11)), st.integers(0, 2**63), st.integers(1, 5))
def test_others_of_the_class_among_those_that_are_used(count: int, used: set[int], number: int, wanted: int) -> None:
    source, indices = Painted(count, size=8), sorted(i for i in used if i < count)
    place = reader(source)
    mates = Classmates(source, np.array(indices, np.int64))
    for i in range(count):
        found = mates.find(source.key(i), number, wanted)
        allowed = [j for j in indices if j != i and source.label(j) == source.label(i)] if i in indices else []
        places = [place(view) for view in found]
        assert len(set(places)) == len(places) == min(wanted, len(allowed))
        assert set(places) <= set(allowed)
        assert all(view.level == NOT_GENERATED for view in found)


def test_each_is_drawn_as_often_as_any_other() -> None:
    source = Painted(15)
    place = reader(source)
    mates = Classmates(source, range(15))
    drawn = Counter(place(mates.find(source.key(4), n)[0]) for n in range(400))
    assert set(drawn) == {1, 7, 10, 13}
    assert min(drawn.values()) > 70


@pytest.mark.parametrize("draws", [None, 3])
def test_a_share_keeps_the_class_and_the_others_show_any_other(draws: int | None) -> None:
    source = Painted(60)
    place = reader(source)
    mates = Classmates(source, range(60), SameClassViews(kept=0.6, draws=draws))
    kept = 0
    strangers = Counter[int]()
    for n in range(1200):
        own = n % 60
        found = place(mates.find(source.key(own), n)[0])
        assert found != own
        kept += source.label(found) == source.label(own)
        strangers[found] += source.label(found) != source.label(own)
    assert kept / 1200 == pytest.approx(0.6, abs=0.05 if draws is None else 0.12)  # 60 images have 180 draws
    assert draws or len(+strangers) == 60


def test_an_image_has_the_same_few_views_for_ever() -> None:
    source = Painted(60)
    place = reader(source)
    mates, again = (Classmates(source, range(60), SameClassViews(draws=2)) for _ in range(2))
    for own in range(60):
        found = {view.draw: view for n in range(20) for view in mates.find(source.key(own), n)}
        shown = {draw: place(view) for draw, view in found.items()}
        assert set(shown) == {0, 1}
        assert len(set(shown.values())) == 2
        both = again.find(source.key(own), 5, 3)
        assert {view.draw: place(view) for view in both} == shown


def test_new_ones_each_time_are_what_they_were_before_there_were_options() -> None:
    source = Painted(30)
    place = reader(source)
    plain, none_lost = Classmates(source, range(30)), Classmates(source, range(30), SameClassViews(kept=1.0))
    for n in range(50):
        (a,), (b,) = (mates.find(source.key(4), n) for mates in (plain, none_lost))
        chosen = Random(n).randrange(len(range(1, 30, 3)) - 1)
        expected = [i for i in range(1, 30, 3) if i != 4][chosen]
        assert place(a) == place(b) == expected


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"views\.kept is 1\.5"):
        SameClassViews(kept=1.5)
    with pytest.raises(UserError, match=r"views\.draws is 0"):
        SameClassViews(draws=0)
    with pytest.raises(UserError, match="all images are of one class"):
        Classmates(Painted(9), [0, 3, 6], SameClassViews(kept=0.5))


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
