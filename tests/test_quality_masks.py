"""Quality from drawn masks: in place of the map of an original, wherever there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import Painted
from genview.errors import UserError
from genview.quality import ExactWeigher, MaskedWeigher, gather_masks
from genview.quality import grids as rooms
from made_maps import DIRECTION, Colours, looking, shown


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PART", 5)


def with_masks(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, mask in masks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    return folder


def test_masks_stand_in_for_the_map_of_originals(tmp_path: Path) -> None:
    source = Painted(12)
    half = np.zeros((20, 30), dtype=np.uint8)
    half[:, :15] = 1  # any value but black
    folder = with_masks(tmp_path / "masks", {source.key(i): half for i in (0, 3)})
    (folder / source.key(4)).parent.mkdir(exist_ok=True)
    (folder / source.key(4)).write_bytes(b"no image")
    told: list[str] = []
    seen = looking(source, unreadable=lambda key, _reason: told.append(key))
    grids = gather_masks(seen, folder, tmp_path / "kept", identity={})
    assert told == [source.key(4)]
    weigher = MaskedWeigher(Colours(), DIRECTION, grids)
    assert weigher.missing == 10
    views, origin = shown(source, [0, 5], np.random.default_rng(0))
    box = torch.tensor([[0.25, 0.0, 0.75, 1.0], [0.25, 0.0, 0.75, 1.0]])
    origin = origin._replace(box=torch.stack([box, box]), flipped=torch.tensor([[True, False], [False, False]]))
    maps, there = weigher._drawn(origin, 2, (4, 4), torch.device("cpu"))
    assert there.tolist() == [True, False, False, False]  # the original of image 0; never a view, nor image 5
    torch.testing.assert_close(maps[0].view(4, 4), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 4))
    found, exact = weigher(views, origin, 0.0), ExactWeigher(Colours(), DIRECTION)(views, origin, 0.0)
    assert float(found.foreground[1]) == pytest.approx(float(exact.foreground[1]))
    tokens = Colours().encode(views[0][:1]).tokens[0].view(4, 4, 3)[:, 2:].mean(dim=(0, 1))
    other = Colours().encode(views[1][:1]).tokens[0]
    scores = other @ DIRECTION
    share = (scores - scores.min()) / (scores.max() - scores.min())
    wanted = F.cosine_similarity(tokens, (share[:, None] * other).sum(dim=0), dim=0)
    assert float(found.foreground[0]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("value", [0, 255])
def test_a_crop_that_is_all_foreground_or_none_has_no_other_side(tmp_path: Path, value: int) -> None:
    source = Painted(2)
    folder = with_masks(tmp_path / "masks", {source.key(i): np.full((8, 8), value, np.uint8) for i in (0, 1)})
    weigher = MaskedWeigher(Colours(), DIRECTION, gather_masks(looking(source), folder, tmp_path / "k", identity={}))
    views, origin = shown(Painted(12), [0, 1], np.random.default_rng(0))
    found = weigher(views, origin._replace(draw=torch.full((2, 2), -1)), 0.0)
    empty, full = (found.background, found.foreground) if value else (found.foreground, found.background)
    assert empty.tolist() == [0.0, 0.0]
    one, other = (Colours().encode(view).tokens.mean(dim=1) for view in views)
    torch.testing.assert_close(full, F.cosine_similarity(one, other))
    assert bool(torch.isfinite(found.weight).all())


def test_masks_of_other_images_are_an_error(tmp_path: Path) -> None:
    folder = with_masks(tmp_path / "masks", {"strange/1.png": np.zeros((4, 4), np.uint8)})
    with pytest.raises(
        UserError, match=r"no mask of any of the 12 images, the first of which would be colour0/0000\.png"
    ):
        gather_masks(looking(), folder, tmp_path / "kept", identity={})


def test_photographs_with_drawn_masks(data: Path, tmp_path: Path) -> None:
    from genview.images import FolderImages

    source = FolderImages(str(data / "coco256_det320" / "images")).build()
    grids = gather_masks(looking(source), data / "coco256_det320" / "fg_masks", tmp_path, identity={})
    assert (grids.images, len(grids)) == (256, 200)
    rows = (data / "coco256_det320" / "index.csv").read_text().splitlines()
    shares = {f"{split}/{Path(name).stem}": share for split, name, *_, share in (row.split(",") for row in rows[1:])}
    for i in (0, 100, 200, 255):
        maps, there = grids.read(torch.tensor([i]), torch.tensor([-1]), torch.device("cpu"))
        share = shares[source.key(i).removesuffix(".jpg")]
        assert bool(there[0]) == bool(share)
        if share:
            assert float(maps.mean()) == pytest.approx(float(share), abs=0.02)
