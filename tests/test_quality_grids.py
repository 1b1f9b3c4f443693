"""Quality from maps of whole pictures: what is read off a crop, what is kept, and what is done only once."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import Painted
from genview.encoders import Encoded
from genview.errors import UserError
from genview.foreground import AnalyseSettings, Looking, TokenMoments
from genview.images.origin import Origin
from genview.images.source import silent
from genview.quality import CachedQuality, Caching, ExactWeigher, Weighting, cache, crops
from genview.quality import grids as rooms
from genview.quality.caching import components_of
from genview.quality.correction import Lesson, fit_correction
from genview.quality.crops import disguised
from genview.quality.grids import Grids, Maps, make_parts, place_of, read_off
from made_maps import DIRECTION, Colours, Draws, looking, made, making, shown


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PART", 5)


def test_a_crop_is_read_off_where_it_was_cut() -> None:
    # The value of a cell is its centre's coordinate; so the mean over a piece of the crop is that piece's centre.
    rows, columns = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(64) + 0.5) / 64, indexing="ij")
    maps = torch.stack([columns, rows])[None].repeat(2, 1, 1, 1)
    box = torch.tensor([0.125, 0.25, 0.625, 0.75])
    found = read_off(maps, box.repeat(2, 1), torch.tensor([False, True]), (2, 4))
    across, down = 0.125 + 0.5 * (torch.arange(4) + 0.5) / 4, 0.25 + 0.5 * (torch.arange(2) + 0.5) / 2
    torch.testing.assert_close(found[0, 0], across.expand(2, 4))
    torch.testing.assert_close(found[0, 1], down[:, None].expand(2, 4))
    torch.testing.assert_close(found[1], found[0].flip(-1))


def test_kept_maps_come_back_by_image_and_draw(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    truth = {
        place: torch.randn(2, 3, 4, generator=chance) * 10 ** float(torch.randint(-6, 4, (1,), generator=chance))
        for place in sorted(
            place_of(i, d) for i, d in product(range(13), (-1, 0, 3)) if (i, d) != (7, -1) and i != 11
        )
    }

    def make(images: range) -> Maps:
        mine = [place for place in truth if place // rooms.DRAWS in images]
        return Maps(np.array(mine, dtype=np.int64), torch.stack([truth[place] for place in mine]))

    make_parts(tmp_path, 13, make, "", silent)
    grids = Grids(tmp_path, 13, (2, 3, 4))
    assert len(grids) == len(truth)
    assert list(grids.places()) == list(truth)
    asked = [(12, 3), (0, -1), (7, -1), (7, 0), (11, 0), (4, 1), (0, 3), (12, 3)]
    image, draw = (torch.tensor(part) for part in zip(*asked, strict=True))
    maps, there = grids.read(image, draw, torch.device("cpu"))
    assert there.tolist() == [True, True, False, True, False, False, True, True]
    for (i, d), found, known in zip(asked, maps, there.tolist(), strict=True):
        wanted = truth[place_of(i, d)] if known else torch.zeros(2, 3, 4)
        error = (found - wanted).abs().amax(dim=(1, 2))
        assert bool((error <= wanted.abs().amax(dim=(1, 2)) / 254 + 1e-12).all())
    size = sum(file.stat().st_size for file in tmp_path.glob("*.arrow"))
    assert grids.bytes_each * len(truth) < size < grids.bytes_each * len(truth) + 3 * 2000


def test_processes_begin_at_different_parts_and_do_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(images: range) -> Maps:
        made.append(images.start // 5)
        places = np.array([place_of(i, -1) for i in images], dtype=np.int64)
        return Maps(places, torch.full((len(images), 1, 1, 1), 1.0))

    (tmp_path / "part-00002.arrow").touch()  # what another process has made
    monkeypatch.setattr(rooms, "world_size", lambda: 2)
    monkeypatch.setattr(rooms, "rank", lambda: 1)
    make_parts(tmp_path, 24, make, "", silent)
    assert made == [3, 4, 0, 1]


def test_cached_weights_are_near_the_exact_ones(tmp_path: Path) -> None:
    views, origin = shown(Painted(12), list(range(12)), np.random.default_rng(0))
    exact = ExactWeigher(Colours(), DIRECTION, Weighting(2.0))(views, origin, 0.0)
    found = made(tmp_path, gamma=2.0, size=64)(views, origin, 0.0)
    assert np.corrcoef(exact.foreground, found.foreground)[0, 1] > 0.97
    assert np.corrcoef(exact.background, found.background)[0, 1] > 0.97
    assert np.corrcoef(exact.weight, found.weight)[0, 1] > 0.97
    wrong = origin._replace(image=origin.image.flip(0))
    other = made(tmp_path, gamma=2.0, size=64)(views, wrong, 0.0)
    assert np.corrcoef(exact.weight, other.weight)[0, 1] < 0.9


def test_every_pair_of_views_of_full_size_is_weighed(tmp_path: Path) -> None:
    views, origin = shown(Painted(12), [3, 8], np.random.default_rng(1))
    third = Origin(origin.image, *(torch.cat([part, part[:, :1], part[:, :1]], dim=1) for part in origin[1:]))
    small = torch.zeros(2, 3, 8, 8)
    weigher = made(tmp_path)
    found = weigher([*views, views[0], small], third, 0.0)
    assert found.weight.shape == (2, 3)
    two = weigher(views, origin, 0.0)
    torch.testing.assert_close(found.foreground[:, 0], two.foreground)
    torch.testing.assert_close(found.foreground[:, 1], torch.ones(2))  # the first and the third are one view
    torch.testing.assert_close(found.background[:, 2], two.background)


def test_the_first_component_is_the_map_and_few_keep_the_cosines() -> None:
    chance = torch.Generator().manual_seed(0)
    low = torch.randn(400, 4, generator=chance) @ torch.randn(4, 12, generator=chance) + 3
    direction = F.normalize(torch.randn(12, generator=chance), dim=0)
    moments = TokenMoments(12)
    moments.add(low)
    basis = components_of(moments, 5 * direction, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), atol=1e-5, rtol=0)
    torch.testing.assert_close((low @ basis)[:, 0], low @ direction, atol=1e-4, rtol=1e-4)
    wanted = F.cosine_similarity(low[:200], low[200:])  # four axes, the mean and the direction: six span them all
    torch.testing.assert_close(F.cosine_similarity((low @ basis)[:200], (low @ basis)[200:]), wanted)


def test_a_killed_cache_goes_on_and_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views, origin = shown(Painted(12), [0, 6, 11], np.random.default_rng(1))
    whole = made(tmp_path / "whole", correction=70)(views, origin, 0.0)

    def killed(what: str, done: int, _total: int, _note: str) -> None:
        if what == "maps" and done == 5:
            raise KeyboardInterrupt

    watched = Looking(Painted(12), Colours(), AnalyseSettings(batch=5), "cpu", killed, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        cache(making(watched, correction=70), tmp_path / "killed", seed=0, identity={})
    first = tmp_path / "killed" / "part-00000.arrow"
    before = first.stat().st_mtime_ns
    again = made(tmp_path / "killed", correction=70)
    assert first.stat().st_mtime_ns == before
    assert torch.equal(again(views, origin, 0.0).weight, whole.weight)
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name
    monkeypatch.setattr(Colours, "encode", lambda self, x: Encoded(torch.zeros(1, 16, 3), x, (4, 4)))  # noqa: ARG005
    assert torch.equal(made(tmp_path / "whole", correction=70)(views, origin, 0.0).weight, whole.weight)
    with pytest.raises(UserError, match="components: there 3, now 2"):
        made(tmp_path / "whole", components=2, correction=70)
    turned = Caching(looking(), Draws(), -DIRECTION, CachedQuality(components=3, correction=70), 16)
    with pytest.raises(UserError, match="direction: there"):
        cache(turned, tmp_path / "whole", seed=0, identity={})


def test_pictures_that_cannot_be_read_are_told_and_named_when_asked_for(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    source = Painted(12, broken=(0, 4, 5, 6, 7, 8, 9))
    seen = looking(source, unreadable=lambda key, reason: told.append((key, reason)))
    plain = Caching(seen, None, DIRECTION, CachedQuality(components=3, correction=20), 16)
    weigher = cache(plain, tmp_path, seed=0, identity={})
    assert {key for key, _ in told} == {source.key(i) for i in source.broken}
    assert len(weigher.grids) == 5
    origin = Origin(torch.tensor([4]), torch.tensor([[-1, -1]]), torch.rand(1, 2, 4), torch.zeros(1, 2))
    with pytest.raises(UserError, match="no map of draw -1 of image 4"):
        weigher([torch.zeros(1, 3, 16, 16)] * 2, origin, 0.0)


def test_no_image_and_no_such_size_are_errors(tmp_path: Path) -> None:
    broken = Caching(looking(Painted(3, broken=(0, 1, 2))), None, DIRECTION, CachedQuality(), 16)
    with pytest.raises(UserError, match="None of the sampled images"):
        cache(broken, tmp_path / "a", seed=0, identity={})

    class Rigid(Colours):
        def encode(self, images: Tensor) -> Encoded:
            if images.shape[-1] != 16:
                raise AssertionError("another size")
            return super().encode(images)

    with pytest.raises(UserError, match=r"takes no images of 32 px \(another size.*set quality\.size to its own 16"):
        cache(making(looking(encoder=Rigid())), tmp_path / "b", seed=0, identity={})
    made(tmp_path / "c")
    (tmp_path / "c" / "part-00001.arrow").write_bytes(b"nothing")
    weigher = made(tmp_path / "c")
    with pytest.raises(UserError, match="damaged"):
        len(weigher.grids)


def test_the_correction_sees_colours_that_maps_cannot_know(tmp_path: Path) -> None:
    views, origin = shown(Painted(12), list(range(12)), np.random.default_rng(3))
    views[0] = views[0] * torch.linspace(0.4, 1, 12)[:, None, None, None]
    views[1][::2] = views[1][::2].mean(dim=1, keepdim=True)  # grey
    exact = ExactWeigher(Colours(), DIRECTION)(views, origin, 0.0)
    blind, seeing = made(tmp_path / "blind"), made(tmp_path / "seeing", correction=500)
    without, found = (np.corrcoef(exact.weight, w(views, origin, 0.0).weight)[0, 1] for w in (blind, seeing))
    assert found > 0.6
    assert without < 0.5


def test_the_correction_is_the_same_each_time_and_leaves_randomness_alone() -> None:
    chance = torch.Generator().manual_seed(0)
    lesson = Lesson(*(torch.rand(40, *shape, generator=chance) for shape in ((2, 3, 3), (3, 12, 12), (2, 3, 3))))
    before = torch.get_rng_state()
    one, other = fit_correction([lesson], 2, seed=1), fit_correction([lesson], 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one(lesson.read, lesson.views), other(lesson.read, lesson.views))
    assert not any(weight.requires_grad for weight in one.parameters())


def test_a_crop_is_where_its_box_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_DISGUISE", lambda view: view)
    rows, columns = np.mgrid[:60, :80]
    picture = Image.fromarray(np.stack([columns * 3, rows * 4, rows * 0], axis=2).astype(np.uint8))
    found = [disguised(picture, 16, seed) for seed in range(30)]
    assert {flip for _, _, flip in found} == {True, False}
    for view, box, flip in found:
        middle = view[:2].float().mean(dim=(1, 2)) / 240
        torch.testing.assert_close(middle, (box[:2] + box[2:]) / 2, atol=0.02, rtol=0)
        assert bool(view[0, 0, 0] > view[0, 0, -1]) == flip


def test_disguises_change_colours_and_depend_on_the_seed_alone() -> None:
    picture = Painted(1).image(0)
    views = [disguised(picture, 16, seed)[0] for seed in range(20)]
    assert all(torch.equal(view, disguised(picture, 16, seed)[0]) for seed, view in enumerate(views))
    grey = [bool((view[0] == view[1]).all() & (view[0] == view[2]).all()) for view in views]
    assert 0 < sum(grey) < 12
