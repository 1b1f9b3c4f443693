"""Pairs: which views are generated, where each comes from, and what randomness depends on."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import Painted
from genview.errors import UserError
from genview.images import ImageFile, InMemory
from genview.images.order import positions
from genview.images.origin import FoundView
from genview.pairs import NOT_GENERATED, Crops, FindView, Pairs, PairSettings, collate, recipe, recipes
from genview.pairs.augment import Look

PLAIN = PairSettings(recipe="small", size=16)


def painted(*greys: int, size: int = 32) -> FindView:
    """Finds generated views of one grey each, at level 200, in a random order."""

    def find(_key: str, number: int, count: int) -> Sequence[FoundView]:
        order = np.random.default_rng(number).permutation(len(greys))[:count]
        return [FoundView(int(n), 200, InMemory(np.full((size, size, 3), greys[n], np.uint8))) for n in order]

    return find


black = painted(0)


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


def test_before_an_epoch_pairs_are_those_of_the_originals_alone() -> None:
    """To the bit: a training is the baseline's until then."""
    source = Painted(20)
    late = Pairs(source, replace(PLAIN, views_from=3), seed=0, find_view=black)
    plain, always = Pairs(source, PLAIN, seed=0), Pairs(source, PLAIN, seed=0, find_view=black)
    for epoch in range(5):
        expected = always if epoch >= 3 else plain
        for i in range(20):
            views, wanted = late[epoch, i].views, expected[epoch, i].views
            assert all(torch.equal(view, other) for view, other in zip(views, wanted, strict=True))


def test_an_image_without_a_generated_view_gives_two_views_of_itself() -> None:
    pairs = Pairs(Painted(4), PLAIN, seed=0, find_view=painted())
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


def test_recipes_are_those_of_the_papers() -> None:
    (moco,) = recipe("moco_v2").full
    assert recipe("moco_v2") == recipe("simsiam")
    assert (moco.scale, moco.jitter, moco.jitter_share) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8)
    assert (moco.grey, moco.blur, moco.flip, moco.solarise) == (0.2, 0.5, 0.5, 0.0)
    assert [(r.blur, r.solarise) for r in recipe("moco_v3").full] == [(1.0, 0.0), (0.1, 0.2)]
    assert {r.scale for r in recipe("moco_v3").full} == {(0.2, 1.0)}
    assert recipe("byol") == recipe("moco_v3_vit") == recipe("barlow_twins") == recipe("vicreg")
    assert {(r.scale, r.jitter) for r in recipe("byol").full} == {((0.08, 1.0), (0.4, 0.4, 0.2, 0.1))}
    (simclr,), swav, dino = recipe("simclr").full, recipe("swav"), recipe("dino")
    assert (simclr.scale, simclr.jitter) == ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2))
    assert (swav.full[0].scale, swav.small.scale, swav.small.jitter) == ((0.14, 1.0), (0.05, 0.14), simclr.jitter)
    assert ([r.scale for r in dino.full], dino.small.scale) == ([(0.4, 1.0)] * 2, (0.05, 0.4))
    assert [(r.blur, r.solarise) for r in (*dino.full, dino.small)] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    assert recipe("stablerep").full[0].coarse == 0.05
    assert all(r.flip == 0.0 for r in recipe("digits").full)
    drawn = [recipe("crops").full[0].draw((40, 30), Random(n)) for n in range(50)]
    assert {look._replace(box=(0, 0, 1, 1), flipped=False) for look in drawn} == {Look((0, 0, 1, 1))}
    assert (len({look.box for look in drawn}), {look.flipped for look in drawn}) == (50, {False, True})


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


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes without colours, so that a view shows which image it is from."""
    found = recipes._alike(replace(recipe("moco_v2").full[0], jitter_share=0.0, grey=0.0, blur=0.0))
    monkeypatch.setattr("genview.pairs.dataset.recipe", lambda _name: found)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("greys", [(10,), (10, 20), (10, 20, 30, 40)])
def test_of_several_views_one_is_the_originals_and_the_others_are_of_different_draws(greys: tuple[int, ...]) -> None:
    pairs = Pairs(Painted(60), replace(PLAIN, positives=4), seed=0, find_view=painted(*greys))
    places = Counter[int]()
    for i in range(60):
        item = pairs[0, i]
        assert (len(item.views), item.draws.count(NOT_GENERATED)) == (4, 1)
        draws = Counter(draw for draw in item.draws if draw != NOT_GENERATED)
        assert len(draws) == min(3, len(greys))
        assert max(draws.values()) - min(draws.values()) <= 1
        for view, draw, level in zip(item.views, item.draws, item.levels, strict=True):
            assert (draw == NOT_GENERATED) == (level == NOT_GENERATED)
            if draw != NOT_GENERATED:
                assert view.unique().tolist() == [greys[draw]]
        places[item.draws.index(NOT_GENERATED)] += 1
    assert min(places.values()) >= 4, "60 images over 4 places, 15 each on average"


@pytest.mark.usefixtures("plain")
def test_small_crops_are_of_the_original_or_of_its_generated_views() -> None:
    settings = replace(PLAIN, crops=Crops(count=3, size=8))
    pairs = Pairs(Painted(60), settings, seed=0, find_view=painted(7, 7))
    drawn = Counter[bool]()
    for i in range(60):
        item = pairs[0, i]
        assert [view.shape[-1] for view in item.views] == [16, 16, 8, 8, 8]
        for view, draw, box in zip(item.views[2:], item.draws[2:], item.boxes[2:], strict=True):
            assert (view.unique().tolist() == [7]) == (draw != NOT_GENERATED)
            assert (box[2] - box[0]) * (box[3] - box[1]) <= 0.14 + 0.06, "whole pixels of a picture of 32"
            drawn[draw == NOT_GENERATED] += 1
    assert 60 <= drawn[True] <= 120, "a fair coin gives 90 ± 27 (four standard deviations)"
    assert {view.unique().numel() > 1 for i in range(9) for view in Pairs(Painted(9), settings, 0)[0, i].views} == {
        True
    }


@pytest.mark.usefixtures("plain")
def test_cutting_the_box_out_of_the_image_gives_the_view() -> None:
    source, settings = Painted(size=50), replace(PLAIN, crops=Crops(count=1, size=8))
    batch = collate([Pairs(source, settings, seed=4)[1, i] for i in range(12)])
    assert batch.origin.box.shape == (12, 3, 4)
    for b, index in enumerate(batch.origin.image.tolist()):
        for v, view in enumerate(batch.views):
            left, top, right, bottom = (batch.origin.box[b, v] * 50).tolist()
            cut = source.image(index).resize(
                (view.shape[-1], view.shape[-1]), Image.Resampling.BICUBIC, (left, top, right, bottom)
            )
            if batch.origin.flipped[b, v]:
                cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            difference = np.abs(np.asarray(cut).transpose(2, 0, 1) - view[b].numpy().astype(float))
            assert difference.mean() < 1.0
    assert 0.2 < batch.origin.flipped.float().mean() < 0.8


class Photographs(Painted):
    """JPEGs of 500×400 pixels, stored upright or turned by EXIF."""

    def opened(self, i: int) -> ImageFile:
        rows, columns = np.mgrid[:400, :500]
        picture = Image.fromarray(np.stack((columns / 2, rows / 2, 40 + 0 * rows), axis=-1).astype(np.uint8))
        exif = Image.Exif()
        if i % 2:
            exif[0x0112] = 8  # to be turned by a quarter to the left before it is shown
            picture = picture.transpose(Image.Transpose.ROTATE_270)
        picture.save(data := io.BytesIO(), "JPEG", quality=95, exif=exif)
        return ImageFile(data.getvalue())


@pytest.mark.usefixtures("plain")
def test_the_box_lies_in_the_upright_image_even_if_it_is_decoded_at_a_part_of_its_size() -> None:
    """Red grows from left to right and green from top to bottom, so that their means tell where a view is from."""
    pairs = Pairs(Photographs(), replace(PLAIN, size=32), seed=0)
    for i in range(16):
        item = pairs[0, i]
        for view, (left, top, right, bottom) in zip(item.views, item.boxes, strict=True):
            red, green, _ = view.float().mean(dim=(1, 2)).tolist()
            assert abs(red - 125 * (left + right)) < 2
            assert abs(green - 100 * (top + bottom)) < 2


def test_a_damaged_view_is_done_without_and_named() -> None:
    whole = io.BytesIO()
    Painted(size=64).image(0).save(whole, "JPEG")

    def find(_key: str, _number: int, _count: int) -> Sequence[FoundView]:
        return [FoundView(0, 100, ImageFile(whole.getvalue()[:-300]))]

    item = Pairs(Painted(), PLAIN, seed=0, find_view=find)[0, 1]
    assert (item.image, item.draws) == (1, (NOT_GENERATED, NOT_GENERATED))
    assert [key for key, _ in item.unreadable] == ["colour1/0001.png (generated view)"]
    assert all(
        torch.equal(a, b) for a, b in zip(item.views, Pairs(Painted(), PLAIN, seed=0)[0, 1].views, strict=True)
    )


def test_an_image_that_turns_out_damaged_when_it_is_decoded_is_replaced() -> None:
    class Truncated(Photographs):
        def opened(self, i: int) -> ImageFile:
            found = super().opened(i)
            return ImageFile(found._data[:-500]) if i == 2 else found

    item = Pairs(Truncated(), PLAIN, seed=0)[0, 2]
    assert item.image == 3
    assert "truncated" in item.unreadable[0][1]


def test_a_range_or_an_array_chooses_images() -> None:
    chosen = Pairs(Painted(), PLAIN, seed=0, indices=np.array([5, 9, 20]))
    assert len(chosen) == chosen.epoch == 3
    assert [chosen[0, i].image for i in range(3)] == [5, 9, 20]
    assert Pairs(Painted(), PLAIN, seed=0, indices=range(3, 8))[0, 1].image == 4
    assert len(Pairs(Painted(), PLAIN, seed=0, indices=())) == 0


def test_looks_left_to_the_device_are_the_same_looks() -> None:
    """Views of a processor are rounded at every step, so that they differ by a few of 255 levels."""
    settings = PairSettings(recipe="byol", size=32, crops=Crops(count=2, size=16))
    here, there = (
        collate([Pairs(Painted(size=40), settings, 0, looks_on_device=late)[0, i] for i in range(16)])
        for late in (False, True)
    )
    assert (here.looks, len(there.looks)) == ((), 4)
    for a, b in zip(here.shown(torch.device("cpu")), there.shown(torch.device("cpu")), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert float((a - b).abs().mean()) < 1.5 / 255
    assert torch.equal(here.origin.box, there.origin.box)
    assert torch.equal(here.origin.flipped, there.origin.flipped)
    assert not torch.equal(here.views[0], there.views[0])


def test_all_views_of_a_batch_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([Pairs(Painted(), PLAIN, seed=0)[0, i] for i in range(2)])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone().fill_(7))
    assert [view.unique().tolist() for view in batch.pin_memory().views] == [[7], [7]]


def test_fewer_than_two_views_are_refused() -> None:
    with pytest.raises(UserError, match=r"pairs\.positives is 1"):
        Pairs(Painted(), replace(PLAIN, positives=1), seed=0)
