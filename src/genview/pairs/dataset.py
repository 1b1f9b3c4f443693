"""Pairs: views of one image, some of them cut from its generated views (GenView, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genview.errors import UserError
from genview.images import ImageSource, Opened, UnreadableImage, opened
from genview.images.origin import FoundView, Origin
from genview.pairs import on_device, pixels
from genview.pairs.augment import Box, Look, Looks
from genview.pairs.recipes import RecipeName, recipe
from genview.seeds import seed_of

NOT_GENERATED = -1
TRIES = 20
FindView = Callable[[str, int, int], Sequence[FoundView]]
"""(key, random number, count) → as many different generated views of that image, or all where there are fewer.

Raises:
    UnreadableImage: one of them is damaged.
"""


@dataclass(frozen=True)
class Crops:
    """`count` small crops of `size` pixels beside the full-size views; `scale`: their areas, the recipe's if None."""

    count: int = 6
    size: int = 96
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    `positives` views of full size are cut from each image: with the probability `views` (1 in the paper) one from
    the image itself and the others from as many generated views, else all from the image. Before the epoch
    `views_from` (the first is 0) all are from the image. `crops` adds small ones, each from the image or one of those
    generated views with equal chance. `flip` and `smallest_crop` replace the recipe's numbers where the images call
    for it. A training set in which more than the share `missing` of images has no generated view is refused.
    """

    recipe: RecipeName = "moco_v2"
    size: int = 224
    positives: int = 2
    crops: Crops | None = None
    views: float = 1.0
    views_from: int = 0
    flip: float | None = None
    smallest_crop: float | None = None
    missing: float = 0.05


class Item(NamedTuple):
    """Views of one image, V of them: uint8 3×S×S each, and where they come from; see `PairBatch`."""

    views: tuple[Tensor, ...]
    image: int
    draws: tuple[int, ...]
    boxes: tuple[Box, ...]
    flipped: tuple[bool, ...]
    levels: tuple[int, ...]
    looks: tuple[Look, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """V views of each of B images.

    `views`: uint8 B×3×S×S each, the ones of full size first; `levels` B×V: the noise level of each, −1 for views
    of the original; `looks`: what is still to be applied to each of `views`, nothing where it is empty;
    `unreadable`: key and reason of images that were replaced by the next ones, and of generated views that were
    done without.
    """

    views: tuple[Tensor, ...]
    origin: Origin
    levels: Tensor
    looks: tuple[Looks, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()

    def shown(self, device: torch.device) -> list[Tensor]:
        """Return the views as an encoder is to see them: floats in [0, 1] on a device, in channels-last memory."""
        moved = [view.to(device, non_blocking=True) for view in self.views]
        if self.looks:
            return [on_device.applied(view, looks) for view, looks in zip(moved, self.looks, strict=True)]
        return [view.to(torch.float32, memory_format=torch.channels_last).div_(255) for view in moved]

    def looked(self, device: torch.device) -> PairBatch:
        """Return it with its looks applied, so that `views` are what an encoder sees, as uint8."""
        if not self.looks:
            return self
        return replace(self, views=tuple((view * 255).round().byte() for view in self.shown(device)), looks=())

    def pin_memory(self) -> PairBatch:
        """Return it with the views in page-locked memory, from which they are moved while other work goes on."""
        return replace(self, views=tuple(view.pin_memory() for view in self.views))


class Pairs(Dataset[Item]):
    """Pairs by (epoch, index).

    The randomness of a pair comes from the run's seed, the epoch and the key alone, so it depends neither on the
    number of workers nor on where a run was interrupted.

    Args:
        source: the originals.
        settings: recipe, size, how many views, probability of a generated view.
        seed: the run's seed.
        find_view: finds generated views; without it all views come from the original.
        indices: images of the source to use, a range or an array, which worker processes share; all where None.
        epoch: how many images the length of a training counts as an epoch; `len` where None.
        looks_on_device: whether items are only cut, and looks are left to `PairBatch.shown`.

    Raises:
        UserError: the settings ask for fewer than two views.
    """

    def __init__(
        self,
        source: ImageSource,
        settings: PairSettings,
        seed: int,
        find_view: FindView | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        epoch: int | None = None,
        looks_on_device: bool = False,
    ) -> None:
        if settings.positives < 2:
            raise UserError(f"pairs.positives is {settings.positives}; a pair needs at least 2 views of full size.")
        self.source = source
        self.settings = settings
        self.seed = seed
        self.find_view = find_view
        self.indices = range(len(source)) if indices is None else indices
        if not isinstance(self.indices, range):  # a list of a million objects would be copied into every worker
            self.indices = np.asarray(self.indices, dtype=np.int64)
        self.epoch = epoch or len(self)
        self.looks_on_device = looks_on_device
        crops = settings.crops or Crops(count=0)
        own = recipe(settings.recipe).changed(settings.flip, settings.smallest_crop, crops.scale)
        self._slots = [(own.full[n % len(own.full)], settings.size) for n in range(settings.positives)]
        self._slots += [(own.small, crops.size)] * crops.count

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: tuple[int, int]) -> Item:
        epoch, i = position
        index, bad = int(self.indices[i]), []
        for step in range(TRIES):
            candidate = (index + step) % len(self.source)
            key = self.source.key(candidate)
            try:
                item = self._item(key, candidate, epoch)
            except UnreadableImage as reason:
                bad.append((key, str(reason)))
            else:
                return item._replace(unreadable=(*bad, *item.unreadable))
        raise UserError(
            f"{TRIES} images in a row could not be read, the first being '{bad[0][0]}' ({bad[0][1]}). "
            "Check that the folder is whole and that this user may read it."
        )

    def _item(self, key: str, index: int, epoch: int) -> Item:
        """Return the views of one image; where a generated one is damaged, all of them come from the original."""
        seed = seed_of(self.seed, key, epoch, "pair")
        own = opened(self.source, index)
        bad: tuple[tuple[str, str], ...] = ()
        try:
            chance = Random(seed)
            found = self._found(key, epoch, seed, chance)
            plan = self._plan([own, *(view.image for view in found)], chance)
            cuts = [self._cut(view.image, plan, place) for place, view in enumerate(found, start=1)]
        except UnreadableImage as reason:
            bad, found, cuts = ((f"{key} (generated view)", str(reason)),), (), []
            plan = self._plan([own], Random(seed))
        cut = {slot: view for views in (self._cut(own, plan, 0), *cuts) for slot, view in views.items()}
        views, boxes = zip(*(cut[slot] for slot in range(len(plan))), strict=True)
        sources = [found[place - 1] if place else None for place, _ in plan]
        return Item(
            views=views,
            image=index,
            draws=tuple(NOT_GENERATED if view is None else view.draw for view in sources),
            boxes=boxes,
            flipped=tuple(look.flipped for _, look in plan),
            levels=tuple(NOT_GENERATED if view is None else view.level for view in sources),
            looks=tuple(look for _, look in plan) if self.looks_on_device else (),
            unreadable=bad,
        )

    def _found(self, key: str, epoch: int, seed: int, chance: Random) -> Sequence[FoundView]:
        if self.find_view is None or epoch < self.settings.views_from or chance.random() >= self.settings.views:
            return ()
        return self.find_view(key, seed, self.settings.positives - 1)

    def _plan(self, images: Sequence[Opened], chance: Random) -> list[tuple[int, Look]]:
        """Draw from which image each view is cut, the original being the first, and its look.

        Of the full-size views, one is of the original and the others of the generated images, in turn where there
        are more views than images.
        """
        generated, positives = len(images) - 1, self.settings.positives
        places = [0, *(1 + n % generated if generated else 0 for n in range(positives - 1))]
        chance.shuffle(places)
        places += [chance.randrange(len(images)) for _ in self._slots[positives:]]
        return [
            (place, own.draw(images[place].size, chance)) for place, (own, _) in zip(places, self._slots, strict=True)
        ]

    def _cut(self, image: Opened, plan: Sequence[tuple[int, Look]], place: int) -> dict[int, tuple[Tensor, Box]]:
        """Decode one of the images and make its views; return them and the boxes that were cut, by slot."""
        looks = {slot: look for slot, (wanted, look) in enumerate(plan) if wanted == place}
        whole = image.pixels(
            pixels.shrink(image.size, [(look, self._slots[slot][1]) for slot, look in looks.items()])
        )
        made = {}
        for slot, look in looks.items():
            view, box = pixels.cut(whole, look, self._slots[slot][1])
            made[slot] = torch.from_numpy(view if self.looks_on_device else pixels.applied(view, look)), box
        return made


def collate(items: Sequence[Item]) -> PairBatch:
    """Stack items into a batch."""
    origin = Origin(
        image=torch.tensor([item.image for item in items]),
        draw=torch.tensor([item.draws for item in items]),
        box=torch.tensor([item.boxes for item in items]),
        flipped=torch.tensor([item.flipped for item in items]),
    )
    looks = zip(*(item.looks for item in items), strict=True)
    return PairBatch(
        views=tuple(torch.stack(views) for views in zip(*(item.views for item in items), strict=True)),
        origin=origin,
        levels=torch.tensor([item.levels for item in items]),
        looks=tuple(Looks.of(of_slot) for of_slot in looks),
        unreadable=tuple(reason for item in items for reason in item.unreadable),
    )
