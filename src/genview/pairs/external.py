"""Images of another collection instead of generated ones: the comparisons that GenView is to beat (its section 4).

Either they are more images to train on, or the one nearest to an image in a frozen encoder's eyes is its second view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.frozen import FrozenEncoder
from genview.errors import UserError
from genview.images import ImageSettings, ImageSource, Opened, batches, opened
from genview.images.batches import Unreadable
from genview.images.origin import FoundView
from genview.images.source import Tell, silent
from genview.pairs.dataset import NOT_GENERATED
from genview.store import claim, read_table, write_table

PART = 1024
"""Images whose embeddings make one part."""
ASKED_AT_ONCE = 65_536
"""Images whose neighbours are looked for in one pass over the other collection: bounds the memory."""
MARK = "//"
"""Stands before the keys of external images; a path relative to a root never begins with it."""


@dataclass(frozen=True)
class ExternalViews:
    """The images of another collection, from wherever images come; their labels are not used.

    `use: extra` trains on them beside the experiment's own, for as many steps as without them. `use: neighbours`
    takes for the second view of each image the external one whose embedding by the frozen `encoder` (see
    `encoders.load_frozen`) has the highest cosine with the image's.
    """

    images: ImageSettings = field(metadata={"discriminator": "kind"})
    kind: Literal["external"] = "external"
    use: Literal["extra", "neighbours"] = "extra"
    encoder: str = "natural"

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:
        """Find the images, as those of an experiment are found."""
        return self.images.build(keep, tell)


class Joined:
    """Own images, then external ones, as one source without labels."""

    classes: tuple[str, ...] = ()

    def __init__(self, own: ImageSource, external: ImageSource) -> None:
        self.own, self.external = own, external

    def __len__(self) -> int:
        return len(self.own) + len(self.external)

    def key(self, i: int) -> str:
        """The own key, or the external one behind `MARK`."""
        beyond = i - len(self.own)
        return self.own.key(i) if beyond < 0 else MARK + self.external.key(beyond)

    def image(self, i: int) -> Image.Image:
        """From whichever it belongs to."""
        beyond = i - len(self.own)
        return self.own.image(i) if beyond < 0 else self.external.image(beyond)

    def opened(self, i: int) -> Opened:
        """From whichever it belongs to."""
        beyond = i - len(self.own)
        return opened(self.own, i) if beyond < 0 else opened(self.external, beyond)

    def label(self, i: int) -> int | None:  # noqa: ARG002 - external images have none
        """None."""
        return None


class Neighbours:
    """Finds the external image nearest to an own one; a `FindView`."""

    def __init__(self, external: ImageSource, nearest: Mapping[str, int]) -> None:
        self.external, self._nearest = external, nearest

    def find(self, key: str, number: int, count: int = 1) -> list[FoundView]:  # noqa: ARG002 - there is but one
        """Return the nearest image, which no generator made; nothing for an image that could not be read."""
        place = self._nearest.get(key)
        return [] if place is None else [FoundView(0, NOT_GENERATED, opened(self.external, place))]


@dataclass(frozen=True)
class Eyes:
    """A frozen encoder, and how images are shown to it."""

    encoder: FrozenEncoder
    device: str = "cpu"
    batch: int = 64
    workers: int = 0
    tell: Tell = silent
    unreadable: Unreadable = lambda _key, _reason: None


class Embeddings(NamedTuple):
    """Places in a source, int64 N, and embeddings of length one, float32 N×E."""

    places: np.ndarray
    rows: Tensor


def neighbours(
    own: ImageSource, external: ImageSource, eyes: Eyes, folder: Path, identity: Mapping[str, object]
) -> Neighbours:
    """Find for every own image the external one with the highest cosine, exactly.

    Embeddings are kept in parts below `folder`, and the result in `nearest.parquet`; what is there is not done
    again. Ties go to the first.

    Raises:
        UserError: the folder holds the work of other settings, or none of the external images can be read.
    """
    found = folder / "nearest.parquet"
    claim(folder, {**identity, "encoder": eyes.encoder.name})
    if not found.exists():
        asked = _embedded(own, eyes, folder / "own", "own images")
        known = _embedded(external, eyes, folder / "external", "external images")
        places, nearest, cosine = _nearest(asked, known)
        keys = [own.key(int(place)) for place in places]
        write_table(found, {"key": keys, "place": nearest, "cosine": cosine})
    table = read_table(found, ["key", "place"])
    return Neighbours(external, dict(zip(table["key"].tolist(), table["place"].tolist(), strict=True)))


def _embedded(source: ImageSource, eyes: Eyes, folder: Path, what: str) -> list[Path]:
    """Write the parts that are missing, columns place and embedding (half precision); return all of them."""
    parts = []
    for number, start in enumerate(range(0, len(source), PART)):
        part = folder / f"part-{number:05d}.parquet"
        parts.append(part)
        if not part.exists():
            write_table(part, _looked_at(source, range(start, min(start + PART, len(source))), eyes))
        eyes.tell(what, min(start + PART, len(source)), len(source), "")
    return parts


def _looked_at(source: ImageSource, indices: range, eyes: Eyes) -> dict[str, np.ndarray]:
    encoder = eyes.encoder
    blank = torch.zeros(1, 3, encoder.size, encoder.size, device=eyes.device)
    places, rows = [np.empty(0, np.int64)], [encoder.encode(blank).embedding[:0].half().cpu()]
    for found in batches(
        source,
        size=encoder.size,
        batch=eyes.batch,
        workers=eyes.workers,
        indices=indices,
        unreadable=eyes.unreadable,
    ):
        places.append(found.indices.numpy())
        rows.append(encoder.encode(found.images.to(eyes.device)).embedding.half().cpu())
    return {"place": np.concatenate(places), "embedding": torch.cat(rows).numpy()}


def _read(parts: list[Path]) -> Embeddings:
    table = read_table(parts, ["place", "embedding"])
    return Embeddings(table["place"], F.normalize(torch.from_numpy(table["embedding"].astype(np.float32)), dim=1))


def _nearest(asked: list[Path], known: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the own images, of their nearest external images, and their cosines."""
    places, nearest, cosine = [], [], []
    for first in range(0, len(asked), ASKED_AT_ONCE // PART):
        some = _read(asked[first : first + ASKED_AT_ONCE // PART])
        best = torch.full((len(some.places),), -2.0)
        where = np.full(len(some.places), -1, dtype=np.int64)
        for part in known:
            other = _read([part])
            if not len(other.places):
                continue
            value, index = (some.rows @ other.rows.T).max(dim=1)
            better = (value > best).numpy()
            best = torch.maximum(best, value)
            where[better] = other.places[index.numpy()[better]]
        places.append(some.places)
        nearest.append(where)
        cosine.append(best.numpy())
    joined = np.concatenate(places), np.concatenate(nearest), np.concatenate(cosine)
    if (joined[1] < 0).any():
        raise UserError("None of the external images can be read; the quarantine list says why.")
    return joined
