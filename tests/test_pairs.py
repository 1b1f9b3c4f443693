"""Pairs: which view is generated, what randomness depends on, and a blur that blurs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import Painted
from genview.errors import UserError
from genview.images.order import positions
from genview.pairs import NOT_GENERATED, Pairs, PairSettings, collate, recipe
from genview.pairs.augment import blurred

PLAIN = PairSettings(recipe="small", size=16)


def black(key: str, number: int) -> tuple[Image.Image, int]:  # noqa: ARG001 - the form of FindView
    return Image.new("RGB", (32, 32)), 200


def is_black(view: torch.Tensor) -> bool:
    return int(view.max()) == 0


def test_one_of_the_two_views_chosen_at_random_is_the_generated_one() -> None:
    pairs = Pairs(Painted(200), PLAIN, seed=0, find_view=black)
    items = [pairs[0, i] for i in range(200)]
    assert all(is_black(item.views[0]) != is_black(item.views[1]) for item in items)
    assert all(max(item.levels) == 200 for item in items)
    first = sum(is_black(item.views[0]) for item in items)
    assert 70 <= first <= 130, "a fair coin gives 100 ± 30 (four standard deviations)"


def test_views_is_the_probability_of_a_generated_view() -> None:
    settings = PairSettings(recipe="small", size=16, views=0.25)
    pairs = Pairs(Painted(200), settings, seed=0, find_view=black)
    generated = sum(max(pairs[0, i].levels) != NOT_GENERATED for i in range(200))
    assert 26 <= generated <= 74


def test_an_image_without_a_generated_view_gives_two_views_of_itself() -> None:
    pairs = Pairs(Painted(4), PLAIN, seed=0, find_view=lambda key, number: None)  # noqa: ARG005
    item = pairs[0, 0]
    assert item.levels == (NOT_GENERATED, NOT_GENERATED)
    assert not is_black(item.views[0])
    assert not is_black(item.views[1])


def test_randomness_comes_from_seed_epoch_and_key_alone() -> None:
    pairs = Pairs(Painted(), PLAIN, seed=3)
    state = torch.get_rng_state()
    once = pairs[1, 5]
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    torch.manual_seed(99)
    again, next_epoch = pairs[1, 5], pairs[2, 5]
    assert torch.equal(once.views[0], again.views[0])
    assert torch.equal(once.views[1], again.views[1])
    assert not torch.equal(once.views[0], next_epoch.views[0])
    assert not torch.equal(once.views[0], once.views[1])


def test_workers_do_not_change_the_batches() -> None:
    pairs = Pairs(Painted(), PLAIN, seed=0)
    order = list(positions(24, 8, first=0, last=3, seed=0, rank=0, world=1))
    alone, two = (list(DataLoader(pairs, batch_sampler=order, collate_fn=collate, num_workers=n)) for n in (0, 2))
    assert len(alone) == 3
    for x, y in zip(alone, two, strict=True):
        assert torch.equal(x.views[0], y.views[0])
        assert torch.equal(x.origin.image, y.origin.image)


def test_unreadable_images_are_replaced_and_named() -> None:
    pairs = Pairs(Painted(broken=(3, 4)), PLAIN, seed=0)
    item = pairs[0, 3]
    assert item.image == 5
    assert item.unreadable == (("colour0/0003.png", "made so"), ("colour1/0004.png", "made so"))
    with pytest.raises(UserError, match="20 images in a row"):
        Pairs(Painted(broken=tuple(range(24))), PLAIN, seed=0)[0, 0]


def test_every_epoch_visits_every_image_once_in_a_new_order() -> None:
    steps = list(positions(10, 5, first=0, last=4, seed=0, rank=0, world=1))
    epochs = [[i for batch in steps[e : e + 2] for _, i in batch] for e in (0, 2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [e for batch in steps for e, _ in batch] == [0] * 10 + [1] * 10


def test_processes_share_the_same_global_batches_and_resuming_continues_the_order() -> None:
    whole = list(positions(10, 4, first=0, last=6, seed=1, rank=0, world=1))
    halves = [list(positions(10, 4, first=0, last=6, seed=1, rank=r, world=2)) for r in range(2)]
    assert [x + y for x, y in zip(*halves, strict=True)] == whole
    assert list(positions(10, 4, first=3, last=6, seed=1, rank=0, world=1)) == whole[3:]


def test_the_blur_blurs() -> None:
    """The authors' fork throws the blurred image away (reference/paper.md 5.1, item 9)."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    torch.manual_seed(0)
    spread = [float(np.asarray(blurred(noise), dtype=float).std()) for _ in range(20)]
    before = float(np.asarray(noise, dtype=float).std())
    assert min(spread) < before / 4
    assert max(spread) <= before


def test_recipes_are_those_of_the_papers() -> None:
    first, second = recipe("moco_v2")
    assert first == second
    assert (first.scale, first.jitter, first.jitter_share) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8)
    assert (first.grey, first.blur, first.flip, first.solarise) == (0.2, 0.5, 0.5, 0.0)
    assert [(r.blur, r.solarise) for r in recipe("moco_v3")] == [(1.0, 0.0), (0.1, 0.2)]
    assert all(r.flip == 0.0 for r in recipe("digits"))


def test_settings_replace_numbers_of_the_recipe() -> None:
    """An image with a white left half and no flip: its mean column brightness never ends darker on the left."""
    settings = PairSettings(recipe="small", size=16, flip=0.0, smallest_crop=1.0)
    half = np.zeros((32, 32, 3), dtype=np.uint8)
    half[:, :16] = 255

    class Half(Painted):
        def image(self, i: int) -> Image.Image:  # noqa: ARG002
            return Image.fromarray(half)

    pairs = Pairs(Half(40), settings, seed=0)
    views = [pairs[0, i].views[0].float() for i in range(40)]
    assert all(view[..., :4].mean() > view[..., -4:].mean() for view in views)
