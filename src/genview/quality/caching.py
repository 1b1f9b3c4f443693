"""The stage that makes a cache: components, maps of every picture, and the correction."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from genview.encoders import Encoded, FrozenEncoder
from genview.errors import UserError
from genview.foreground import Looking, TokenMoments
from genview.images import batches
from genview.quality.cached import CachedWeigher
from genview.quality.correction import Lesson, fit_correction, load_correction, save_correction
from genview.quality.crops import crops
from genview.quality.grids import Grids, Maps, as_maps, make_parts
from genview.quality.pictures import DrawTable, Pictures
from genview.quality.settings import CachedQuality
from genview.seeds import seed_of
from genview.store import claim
from genview.store.parts import appearing

SAMPLE = 512
"""Images that the components are fitted on."""


@dataclass(frozen=True)
class Caching:
    """What is looked at and how: originals, their generated views if any, the foreground's `direction` D, the
    settings, and the `side` in pixels that views have in training.
    """

    looking: Looking
    views: DrawTable | None
    direction: Tensor
    settings: CachedQuality
    side: int

    @property
    def size(self) -> int:
        """Side at which pictures are shown to the encoder."""
        return self.settings.size or 2 * self.looking.encoder.size

    def seen(self, pictures: Pictures) -> Iterator[tuple[Tensor, Encoded]]:
        """Yield numbers of pictures and what the encoder says of them; unreadable ones are told and left out.

        Raises:
            UserError: the encoder takes no images of this size.
        """
        looking, encoder = self.looking, at_size(self.looking.encoder, self.size)
        for found in batches(
            pictures,
            size=self.size,
            batch=looking.settings.batch,
            workers=looking.settings.workers,
            unreadable=looking.unreadable,
        ):
            try:
                yield found.indices, encoder.encode(found.images.to(looking.device))
            except AssertionError as error:  # how timm's transformers say so
                raise UserError(
                    f"The encoder {encoder.name} takes no images of {self.size} px ({error}): set quality.size to "
                    f"its own {looking.encoder.size}."
                ) from error


def cache(caching: Caching, folder: Path, *, seed: int, identity: Mapping[str, object]) -> CachedWeigher:
    """Look at every original and view once, keep what weights need, and return who weighs with it.

    Kept below `folder` are `components.safetensors`, `part-NNNNN.arrow` (see `Grids`) and `correction.safetensors`;
    what is there is not made again. Processes that train together may all call this at the same time. Memory does
    not depend on the number of images.

    Args:
        caching: what is looked at and how.
        folder: where it is kept.
        seed: of the run.
        identity: what else the maps depend on: images and views.

    Raises:
        UserError: the folder holds other maps, no image can be read, or the encoder takes no images of this size.
    """
    claim(folder, {**identity, **_about(caching), "seed": seed})
    images, settings = len(caching.looking.source), caching.settings
    basis, shape = _components(caching, folder / "components.safetensors")
    make_parts(folder, images, lambda some: _maps(caching, some, basis, shape), "maps", caching.looking.tell)
    blank = torch.zeros(1, 3, caching.side, caching.side, device=caching.looking.device)
    grid = caching.looking.encoder.encode(blank).grid
    weigher = CachedWeigher(Grids(folder, images, shape), grid, None, settings)
    if settings.correction:
        file = folder / "correction.safetensors"
        if not file.exists():
            save_correction(fit_correction(_lessons(caching, weigher, basis, seed), shape[0], seed), file)
        weigher.correction = load_correction(file, shape[0]).to(caching.looking.device)
    return weigher


def at_size(encoder: FrozenEncoder, size: int) -> FrozenEncoder:
    """Return the encoder looking at images of another side; it shares the weights."""
    other = copy.copy(encoder)
    other.size = size
    return other


def components_of(moments: TokenMoments, direction: Tensor, count: int) -> Tensor:
    """Return orthonormal columns D×count: the direction, then the axes on which tokens are longest beside it.

    They belong to the second moments, not to the covariance: cosines are of tokens that are not centred.
    """
    first = torch.nn.functional.normalize(direction.double().cpu(), dim=0)
    second = moments.scatter / moments.count + torch.outer(moments.mean, moments.mean)
    beside = torch.eye(len(first), dtype=torch.float64) - torch.outer(first, first)
    _, axes = torch.linalg.eigh(beside @ second @ beside)
    return torch.cat([first[:, None], axes.flip(1)[:, : count - 1]], dim=1).float()


def _about(caching: Caching) -> dict[str, object]:
    """What the files depend on, for the claim."""
    settings, direction = caching.settings, caching.direction.float().cpu().numpy()
    return {
        "encoder": caching.looking.encoder.name,
        "direction": hashlib.blake2b(direction.tobytes(), digest_size=8).hexdigest(),
        "size": caching.size,
        "components": settings.components,
        "correction": settings.correction,
        "side": caching.side,
        "images_found": len(caching.looking.source),
        "views_found": 0 if caching.views is None else len(caching.views),
    }


def _components(caching: Caching, file: Path) -> tuple[Tensor, tuple[int, int, int]]:
    """Fit the basis D×k, unless it is there, and return it with the shape k×h×w of the maps."""
    if not file.exists():
        source, moments, grid = caching.looking.source, None, (0, 0)
        sample = np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).round().astype(int).tolist()
        for _, encoded in caching.seen(Pictures(source, caching.views, sample, caching.size)):
            moments = moments or TokenMoments(encoded.tokens.shape[-1])
            moments.add(encoded.tokens)
            grid = encoded.grid
        if moments is None:
            raise UserError("None of the sampled images can be read; the quarantine list has the reasons.")
        basis = components_of(moments, caching.direction, min(caching.settings.components, moments.width))
        with appearing(file, first=True) as temporary:
            temporary.write_bytes(safetensors.torch.save({"basis": basis.contiguous(), "grid": torch.tensor(grid)}))
    found = safetensors.torch.load_file(file)
    height, width = found["grid"].tolist()
    return found["basis"].to(caching.looking.device), (found["basis"].shape[1], height, width)


def _maps(caching: Caching, images: range, basis: Tensor, shape: tuple[int, int, int]) -> Maps:
    pictures = Pictures(caching.looking.source, caching.views, images, caching.size)
    places, values = [np.empty(0, np.int64)], [torch.zeros(0, *shape)]
    for numbers, encoded in caching.seen(pictures):
        places.append(np.array([pictures.place(i) for i in numbers.tolist()], dtype=np.int64))
        values.append(as_maps(encoded.tokens @ basis, encoded.grid).cpu())
    return Maps(np.concatenate(places), torch.cat(values))


def _lessons(caching: Caching, weigher: CachedWeigher, basis: Tensor, seed: int) -> Iterator[Lesson]:
    """Random crops: what was read off for them, how they look, and what the encoder sees."""
    looking, count = caching.looking, caching.settings.correction
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "correction"))
    places = weigher.grids.places()
    if not len(places):
        raise UserError("None of the images can be read; the quarantine list has the reasons.")
    chosen = places[torch.randint(len(places), (count,), generator=chance).numpy()]
    done = 0
    for views, origin in crops(looking, caching.views, chosen, caching.side, seed):
        views = views.to(looking.device)
        encoded = looking.encoder.encode(views)
        yield Lesson(weigher.read(origin, views.device), views, as_maps(encoded.tokens @ basis, encoded.grid))
        done += len(views)
        looking.tell("correction", done, count, "")
