"""The classifier of `view_quality.py`: a small residual network, trained on real images and kept in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.store import write_bytes

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained, and on how many images; a change gives its cached file another name."""

    widths: tuple[int, int, int] = (32, 96, 192)
    samples: int = 120_000
    batch: int = 256
    rate: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.1
    shift: float = 0.125
    images: int | None = None


QUICK = Recipe(widths=(16, 32, 64), samples=30_000, images=5000)
"""Under a minute on two cores, and only good enough to see that all runs."""


class Labelled(NamedTuple):
    """Keys, images uint8 N×3×S×S, and labels N."""

    keys: list[str]
    images: Tensor
    labels: Tensor

    def part(self, start: int, stop: int | None = None) -> Labelled:
        """Return those from `start` on, before `stop`."""
        return Labelled(self.keys[start:stop], self.images[start:stop], self.labels[start:stop])

    def first(self, count: int) -> Labelled:
        """Return the first `count`."""
        return self.part(0, count)


class Block(nn.Module):
    """Convolve and halve the side, then add a residual: B×C×H×W → B×width×H/2×W/2."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(i, width, 3, padding=1, bias=False) for i in (width_in, width))
        self.first = nn.Sequential(first, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU())
        self.second = nn.Sequential(second, nn.BatchNorm2d(width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = self.first(x)
        residual: Tensor = self.second(x)
        return x + residual


class Classifier(nn.Module):
    """A small residual network on whitened patches: images B×3×H×W in [0, 1] → logits B×classes."""

    def __init__(self, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip((24, *widths), widths, strict=False)))
        self.head = nn.Linear(widths[-1], classes)

    def whiten(self, images: Tensor) -> None:
        """Fix the first layer: ± the principal directions of the 2×2 patches of `images`, scaled to unit variance."""
        patches = F.unfold(images - 0.5, 2).transpose(1, 2).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.patches.weight.copy_(torch.cat([filters, -filters]))

    def maps(self, images: Tensor, depth: int = 3) -> Tensor:
        """Return what the first `depth` blocks make of them, B×C×h×w; the side is halved by each."""
        found: Tensor = self.blocks[:depth](F.gelu(self.patches(images - 0.5)))
        return found

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer, B×D."""
        return self.maps(images).amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.head(self.features(images)) / 8
        return logits


def train(data: Labelled, recipe: Recipe, device: str, tell: Tell) -> Classifier:
    """Train a classifier by SGD with one cycle of the rate, on shifted and mirrored images."""
    torch.manual_seed(0)
    net = Classifier(recipe.widths, int(data.labels.max()) + 1)
    net.whiten(data.images[:2000] / 255)
    net.to(device).to(memory_format=torch.channels_last)
    steps = -(-recipe.samples // recipe.batch)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, steps, pct_start=0.25, cycle_momentum=False, final_div_factor=1e3
    )
    for step, rows in zip(range(steps), _rows(len(data.labels), recipe.batch), strict=False):
        images = shifted(data.images[rows], recipe.shift).to(device, memory_format=torch.channels_last) / 255
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = net(images).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, data.labels[rows].to(device), label_smoothing=recipe.smoothing).backward()
        optimizer.step()
        cycle.step()
        tell("training the classifier", step + 1, steps)
    return net.cpu().eval()


def _rows(count: int, batch: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).split(batch)


def shifted(images: Tensor, share: float) -> Tensor:
    """Move each image by up to `share` of its side, mirrored beyond its border; then mirror half of the images."""
    count, _, side, _ = images.shape
    most = int(side * share)
    wide = F.pad(images.float(), (most,) * 4, mode="reflect")
    tops, lefts = torch.randint(0, 2 * most + 1, (2, count)).tolist()
    moved = torch.stack([w[:, t : t + side, x : x + side] for w, t, x in zip(wide, tops, lefts, strict=True)])
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, moved.flip(3), moved)


def classifier_for(data: Labelled, name: str, recipe: Recipe, cache: Path, tell: Tell) -> Classifier:
    """Return the classifier from the cache, or train it and put it there; `name` says which data these are."""
    key = hashlib.blake2b(repr((recipe, data.images.shape)).encode(), digest_size=4).hexdigest()
    path = cache / f"view-quality-{name}-{key}.safetensors"
    if not path.exists():
        net = train(data, recipe, "cuda" if torch.cuda.is_available() else "cpu", tell)
        write_bytes(path, safetensors.torch.save({n: value.contiguous() for n, value in net.state_dict().items()}))
    net = Classifier(recipe.widths, int(data.labels.max()) + 1)
    net.load_state_dict(safetensors.torch.load_file(path))
    return net.eval()
