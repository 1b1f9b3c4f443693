"""What a crop's map cannot know of a view, colours, blur and its border, told by a small network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.errors import UserError
from genview.store import appearing

CELL = 8
"""Pixels on a side of a token's cell, as the network sees views."""
LOOKS = 18
"""Numbers that describe a cell."""
WIDTH = 64
BATCH = 64
ROUNDS = 20
RATE = 2e-3


class Lesson(NamedTuple):
    """Crops M: what was read off for them M×k×h×w, the views M×3×S×S, and what the encoder sees M×k×h×w."""

    read: Tensor
    views: Tensor
    seen: Tensor


class Correction(nn.Module):
    """Maps read off M×k×h×w and views M×3×S×S in [0, 1] → maps as the encoder would give them, M×k×h×w.

    Two 3×3 convolutions over the cells of the crop see what was read off, means, deviations and gradients of the
    pixels of each cell, and the same of the whole view. Unfitted, it changes nothing.
    """

    centre: Tensor
    spread: Tensor
    unit: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        inputs = components + 2 * LOOKS
        self.net = nn.Sequential(
            nn.Conv2d(inputs, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, components, 1),
        )
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]  # the last is a convolution
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("centre", torch.zeros(1, inputs, 1, 1))
        self.register_buffer("spread", torch.ones(1, inputs, 1, 1))

    def forward(self, read: Tensor, views: Tensor) -> Tensor:
        """Correct what was read off."""
        return self.from_inputs(self.inputs(read, views))

    def inputs(self, read: Tensor, views: Tensor) -> Tensor:
        """What the network sees of M crops, M×inputs×h×w."""
        looks = looks_of(views, (read.shape[2], read.shape[3]))
        return torch.cat([read, looks, looks.mean(dim=(2, 3), keepdim=True).expand_as(looks)], dim=1)

    def from_inputs(self, inputs: Tensor) -> Tensor:
        """Correct, given `inputs`."""
        found: Tensor = self.net((inputs - self.centre) / self.spread)
        return inputs[:, : found.shape[1]] + self.unit * found


def looks_of(views: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describe the cells of views M×3×S×S: M×LOOKS×h×w.

    Mean colours of a cell's quarters, deviations of its colours, and mean sizes of the first differences in both
    directions and of the second, which fall with blur.
    """
    x = F.interpolate(views, (CELL * grid[0], CELL * grid[1]), mode="bilinear", antialias=True)
    quarters = F.pixel_unshuffle(F.avg_pool2d(x, CELL // 2), 2)
    mean = F.avg_pool2d(x, CELL)
    deviation = (F.avg_pool2d(x.square(), CELL) - mean.square()).clamp(min=0).sqrt()
    grey = x.mean(dim=1, keepdim=True)
    across, down = F.pad(grey.diff(dim=3).abs(), (0, 1)), F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1))
    second = F.pad(grey.diff(n=2, dim=2).abs(), (0, 0, 1, 1))
    edges = F.avg_pool2d(torch.cat([across, down, second], dim=1), CELL)
    return torch.cat([quarters, deviation, edges], dim=1)


def fit_correction(lessons: Iterable[Lesson], components: int, seed: int) -> Correction:
    """Fit by AdamW on the mean squared error of the maps; equal lessons and seed give an equal network on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        correction = Correction(components)
    inputs, seen = _materials(correction, lessons)
    correction.centre = inputs.mean(dim=(0, 2, 3), keepdim=True)
    correction.spread = inputs.std(dim=(0, 2, 3), keepdim=True) + 1e-6
    correction.unit = seen.std() + 1e-12
    correction.to(inputs.device)
    optimizer = torch.optim.AdamW(correction.net.parameters(), RATE, weight_decay=1e-2)
    steps = ROUNDS * -(-len(inputs) // BATCH)
    with torch.enable_grad():
        for step, rows in enumerate(_orders(len(inputs), seed)):
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
            rows = rows.to(inputs.device)
            loss = ((correction.from_inputs(inputs[rows]) - seen[rows]) / correction.unit).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return correction.eval().requires_grad_(False)


def _materials(correction: Correction, lessons: Iterable[Lesson]) -> tuple[Tensor, Tensor]:
    pairs = [(correction.inputs(lesson.read, lesson.views), lesson.seen) for lesson in lessons]
    return torch.cat([inputs for inputs, _ in pairs]), torch.cat([seen for _, seen in pairs])


def _orders(count: int, seed: int) -> Iterator[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    for _ in range(ROUNDS):
        yield from torch.randperm(count, generator=chance).split(BATCH)


def save_correction(correction: Correction, path: Path) -> None:
    """Write as safetensors; what another process has written meanwhile stays."""
    state = {name: value.cpu().contiguous() for name, value in correction.state_dict().items()}
    with appearing(path, first=True) as temporary:
        temporary.write_bytes(safetensors.torch.save(state))


def load_correction(path: Path, components: int) -> Correction:
    """Read what `save_correction` wrote.

    Raises:
        UserError: the file is damaged.
    """
    correction = Correction(components)
    try:
        correction.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run the command again.") from error
    return correction.eval().requires_grad_(False)
