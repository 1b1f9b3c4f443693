"""Small maps of pictures, kept as bytes in files that are mapped, and read off at crops."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from genview.distributed import rank, world_size
from genview.errors import UserError
from genview.images.source import Tell
from genview.store import read_mapped, write_mapped

PART = 512
"""Images, with all their views, whose maps make one part."""
DRAWS = 1 << 16
"""A picture's place is image · DRAWS + draw + 1; draw −1 is the original."""
ORIGINAL = -1


class Maps(NamedTuple):
    """Pictures M of ascending `place`, and their `values` M×C×h×w, float32."""

    place: np.ndarray
    values: Tensor


class _Part(NamedTuple):
    """As stored: values are `codes` M×(C·h·w), int8, times `scales` M×C, float32."""

    place: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


def place_of(image: int, draw: int) -> int:
    """Number that says which picture: of which image, and which draw of it."""
    return image * DRAWS + draw + 1


def picture_at(place: int) -> tuple[int, int]:
    """Image and draw of a place."""
    return place // DRAWS, place % DRAWS - 1


def as_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """B×(h·w)×C → B×C×h×w."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def make_parts(folder: Path, images: int, make: Callable[[range], Maps], what: str, tell: Tell) -> None:
    """Make the parts that are missing of the maps of `images` images.

    Processes that train together begin at different parts, so that they share the work without speaking.
    """
    count = -(-images // PART)
    first = rank() * count // world_size()
    for done, turn in enumerate(range(count)):
        number = (first + turn) % count
        if not _file(folder, number).exists():
            some = range(number * PART, min((number + 1) * PART, images))
            _write(_file(folder, number), make(some))
        tell(what, min((done + 1) * PART, images), images, "")


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.arrow"


def _write(path: Path, maps: Maps) -> None:
    largest = maps.values.abs().amax(dim=(2, 3))
    scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (maps.values / scales[..., None, None]).round().to(torch.int8)
    write_mapped(path, {"place": maps.place, "codes": codes.flatten(1).numpy(), "scales": scales.numpy()})


class Grids:
    """The maps of pictures, C×h×w each, of a folder that `make_parts` has filled.

    A picture takes C·h·w + 4C + 8 bytes on disk. Nothing is read before it is asked for.

    Raises:
        UserError: a part is missing or damaged.
    """

    def __init__(self, folder: Path, images: int, shape: tuple[int, int, int]) -> None:
        self.folder, self.images, self.shape = folder, images, shape

    @cached_property
    def _parts(self) -> list[_Part]:
        return [self._mapped(_file(self.folder, number)) for number in range(-(-self.images // PART))]

    def _mapped(self, path: Path) -> _Part:
        columns = read_mapped(path)
        place = columns["place"].to_numpy()
        codes, scales = (columns[name].flatten().to_numpy() for name in ("codes", "scales"))
        channels, height, width = self.shape
        if codes.size != len(place) * channels * height * width or scales.size != len(place) * channels:
            raise UserError(f"{path} is damaged (its maps have another shape). Delete it and run the command again.")
        return _Part(
            place, codes.reshape(len(place), channels * height * width), scales.reshape(len(place), channels)
        )

    @property
    def bytes_each(self) -> int:
        """Bytes that a picture takes on disk."""
        channels, height, width = self.shape
        return channels * height * width + 4 * channels + 8

    def __len__(self) -> int:
        return sum(len(part.place) for part in self._parts)

    def places(self) -> np.ndarray:
        """Places of all pictures, ascending."""
        return np.concatenate([part.place for part in self._parts])

    def read(self, image: Tensor, draw: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the maps M×C×h×w of pictures on a device, and M flags of those that are there.

        Maps of pictures that are not there are zero.

        Args:
            image: M indices of images.
            draw: M draws, −1 for the original.
            device: where the maps shall be.
        """
        images = image.cpu().numpy().astype(np.int64)
        wanted: np.ndarray = images * DRAWS + draw.cpu().numpy().astype(np.int64) + 1
        codes = np.zeros((len(wanted), int(np.prod(self.shape))), dtype=np.int8)
        scales, there = np.zeros((len(wanted), self.shape[0]), np.float32), np.zeros(len(wanted), dtype=bool)
        order = np.argsort(images // PART, kind="stable")
        numbers, starts = np.unique(images[order] // PART, return_index=True)
        for number, asked in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            part = self._parts[number]
            rows = np.searchsorted(part.place, wanted[asked]).clip(max=max(len(part.place) - 1, 0))
            found = part.place[rows] == wanted[asked] if len(part.place) else np.zeros(len(asked), dtype=bool)
            there[asked] = found
            codes[asked[found]], scales[asked[found]] = part.codes[rows[found]], part.scales[rows[found]]
        values = torch.from_numpy(codes).to(device).view(-1, *self.shape).float()
        values *= torch.from_numpy(scales).to(device)[..., None, None]
        return values, torch.from_numpy(there).to(device)


def read_off(maps: Tensor, box: Tensor, flipped: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what maps of whole pictures say about crops of them, M×C×h×w (RoIAlign; He et al., 2017).

    Args:
        maps: M×C×H×W.
        box: M×4, left, top, right and bottom as shares of the picture's width and height.
        flipped: M flags of crops that were mirrored left to right.
        grid: (h, w) cells of a crop.
    """
    height, width = maps.shape[-2:]
    shares = torch.tensor([width, height, width, height], device=maps.device)
    numbers = torch.arange(len(maps), device=maps.device)[:, None]
    rois = torch.cat([numbers, box.to(maps) * shares], dim=1).to(maps)
    found: Tensor = roi_align(maps, rois, grid, aligned=True)  # samples as densely as the crop has cells
    return torch.where(flipped.to(maps.device)[:, None, None, None], found.flip(-1), found)
