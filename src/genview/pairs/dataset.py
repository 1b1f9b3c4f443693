"""Pairs: two views of one image, one of them from its generated view (GenView, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from genview.errors import UserError
from genview.images import ImageSource, UnreadableImage
from genview.images.origin import Origin
from genview.pairs.augment import RecipeName, ViewRecipe, recipe
from genview.seeds import seed_of

NOT_GENERATED = -1
WHOLE = (0.0, 0.0, 1.0, 1.0)
TRIES = 20
FindView = Callable[[str, int], tuple[Image.Image, int] | None]
"""(key, random number) → a generated view of that image and its noise level, or None where there is none."""


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    `views` is the probability that a pair has a generated view (1 in the paper). `flip` and `smallest_crop`
    replace the recipe's numbers where the images call for it. A training set in which more than the share
    `missing` of images has no generated view is refused.
    """

    recipe: RecipeName = "moco_v2"
    size: int = 224
    views: float = 1.0
    flip: float | None = None
    smallest_crop: float | None = None
    missing: float = 0.05


class Item(NamedTuple):
    """Views of one image, V of them: uint8 3×S×S each, and where they come from; see `PairBatch`."""

    views: tuple[Tensor, ...]
    image: int
    draws: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    flipped: tuple[bool, ...]
    levels: tuple[int, ...]
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """V views of each of B images.

    `views`: uint8 B×3×S×S each, the ones of full size first; `levels` B×V: the noise level of each, −1 for views
    of the original; `unreadable`: key and reason of images that were replaced by the next ones.
    """

    views: tuple[Tensor, ...]
    origin: Origin
    levels: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def shown(self, device: torch.device) -> list[Tensor]:
        """Return the views as floats in [0, 1] on a device."""
        moved = (view.to(device, non_blocking=True, memory_format=torch.channels_last) for view in self.views)
        return [view.float() / 255 for view in moved]


class Pairs(Dataset[Item]):
    """Pairs by (epoch, index).

    The randomness of a pair comes from the run's seed, the epoch and the key alone, so it depends neither on the
    number of workers nor on where a run was interrupted.

    Args:
        source: the originals.
        settings: recipe, size, probability of a generated view.
        seed: the run's seed.
        find_view: finds a generated view; without it both views come from the original.
        indices: images of the source to use; all where empty.
        epoch: how many images the length of a training counts as an epoch; `len` where None.
    """

    def __init__(
        self,
        source: ImageSource,
        settings: PairSettings,
        seed: int,
        find_view: FindView | None = None,
        indices: Sequence[int] = (),
        epoch: int | None = None,
    ) -> None:
        self.source = source
        self.settings = settings
        self.seed = seed
        self.find_view = find_view
        self.indices = indices
        self.epoch = epoch or len(self)
        self._transforms = [changed.transform(settings.size) for changed in _recipes(settings)]

    def __len__(self) -> int:
        return len(self.indices) or len(self.source)

    def __getitem__(self, position: tuple[int, int]) -> Item:
        epoch, i = position
        image, index, bad = self._readable(self.indices[i] if self.indices else i)
        key = self.source.key(index)
        first, second = self._transforms
        seed = seed_of(self.seed, key, epoch, "pair")
        with _randomness(seed):
            views = [image, image]
            level = NOT_GENERATED
            found = self.find_view(key, seed) if self.find_view and torch.rand(()) < self.settings.views else None
            if found is not None:
                side = int(torch.randint(2, (1,)))
                views[side], level = found
            levels, draws = [NOT_GENERATED, NOT_GENERATED], [NOT_GENERATED, NOT_GENERATED]
            if found is not None:
                levels[side], draws[side] = level, 0
            shown = (first(views[0]), second(views[1]))
            return Item(shown, index, tuple(draws), (WHOLE, WHOLE), (False, False), tuple(levels), tuple(bad))

    def _readable(self, index: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
        """Return image `index`, or the next one that can be read, with the reasons why not."""
        bad: list[tuple[str, str]] = []
        for step in range(TRIES):
            candidate = (index + step) % len(self.source)
            try:
                return self.source.image(candidate), candidate, bad
            except UnreadableImage as reason:
                bad.append((self.source.key(candidate), str(reason)))
        raise UserError(
            f"{TRIES} images in a row could not be read, the first being '{bad[0][0]}' ({bad[0][1]}). "
            "Check that the folder is whole and that this user may read it."
        )


@contextmanager
def _randomness(seed: int) -> Iterator[None]:
    """Give torch's CPU generator this seed within, and its own state back afterwards.

    `torch.manual_seed` would also note the whole call stack for devices that are never used here: a millisecond.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _recipes(settings: PairSettings) -> list[ViewRecipe]:
    recipes = list(recipe(settings.recipe))
    if settings.flip is not None:
        recipes = [replace(r, flip=settings.flip) for r in recipes]
    if settings.smallest_crop is not None:
        recipes = [replace(r, scale=(settings.smallest_crop, 1.0)) for r in recipes]
    return recipes


def collate(items: Sequence[Item]) -> PairBatch:
    """Stack items into a batch."""
    origin = Origin(
        image=torch.tensor([item.image for item in items]),
        draw=torch.tensor([item.draws for item in items]),
        box=torch.tensor([item.boxes for item in items]),
        flipped=torch.tensor([item.flipped for item in items]),
    )
    return PairBatch(
        views=tuple(torch.stack(views) for views in zip(*(item.views for item in items), strict=True)),
        origin=origin,
        levels=torch.tensor([item.levels for item in items]),
        unreadable=tuple(reason for item in items for reason in item.unreadable),
    )
