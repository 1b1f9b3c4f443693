"""Judge a generator: do its views keep their source's class, and how far from the source do they stray?

    python benchmarks/view_quality.py --generator FOLDER --sheet views.png

The classifier is trained by this program on the real training images (once; it is kept in --cache) and has no part
in the generator. The sources are test images, which neither has seen. Every level is measured on the same sources
with the same seeds, beside three references: the sources themselves, their hand-made augmentations, and their nearest
training images. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from genview.errors import UserError
from genview.generators import Generator
from genview.generators.embedded import EmbeddedSettings
from genview.images import Archives, batches
from genview.pairs.augment import ViewRecipe
from genview.seeds import seed_of
from genview.store import write_bytes

FILES = {
    "cifar10": ("cifar10", ("train-00.zip", "train-01.zip"), ("test.zip",)),
    "imagenette": ("imagenette224", ("train-00.tar", "train-01.tar"), ("val-00.tar",)),
}
LEVELS = (0, 100, 200, 300, 400)
HAND_MADE = ViewRecipe(blur=0.0)
"""MoCo v2's augmentation; without its blur, as is usual at 32 pixels."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained; any change gives its cached file another name."""

    widths: tuple[int, int, int] = (64, 128, 256)
    samples: int = 400_000
    batch: int = 256
    rate: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.1
    shift: float = 0.125
    images: int | None = None


QUICK = Recipe(widths=(16, 32, 64), samples=40_000, images=4000)


class Labelled(NamedTuple):
    """Keys, images uint8 N×3×S×S, and labels N."""

    keys: list[str]
    images: Tensor
    labels: Tensor


class Block(nn.Module):
    """Convolve and halve the side, then add a residual."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv(width_in, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU())
        self.second = nn.Sequential(*_conv(width, width), nn.BatchNorm2d(width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×width×H/2×W/2."""
        x = self.first(x)
        residual: Tensor = self.second(x)
        return x + residual


class Classifier(nn.Module):
    """A small residual network on whitened 2×2 patches: images B×3×H×W in [0, 1] → logits B×classes."""

    def __init__(self, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2).requires_grad_(False)
        ins = (24, *widths[:2])
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip(ins, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes)

    def whiten(self, images: Tensor) -> None:
        """Set the filters of the first layer: ± the principal directions of 2×2 patches of `images`, unit variance."""
        patches = F.unfold(images - 0.5, 2).transpose(1, 2).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.patches.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.patches.bias if self.patches.bias is not None else torch.empty(0))

    def features(self, images: Tensor) -> Tensor:
        """The layer before the last: B×D."""
        found: Tensor = self.blocks(F.gelu(self.patches(images - 0.5)))
        return found.amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.head(self.features(images)) / 8
        return logits


def _conv(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return (nn.Conv2d(width_in, width, 3, padding=1, bias=False),)


def train(data: Labelled, recipe: Recipe, device: str, tell: Tell) -> Classifier:
    """Train a classifier with SGD and one cycle of the rate, on shifted and mirrored images."""
    torch.manual_seed(0)
    net = Classifier(recipe.widths, int(data.labels.max()) + 1)
    net.whiten(data.images[:2000] / 255)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = -(-recipe.samples // recipe.batch)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, steps, pct_start=0.25, cycle_momentum=False, final_div_factor=1e3
    )
    for step, rows in zip(range(steps), _epochs(len(data.labels), recipe.batch), strict=False):
        images = shifted(data.images[rows], recipe.shift).to(device, memory_format=torch.channels_last) / 255
        with torch.autocast(device, torch.bfloat16):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), data.labels[rows].to(device), label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        tell(f"classifier (loss {loss.item():.2f})", step + 1, steps)
    return net.eval()


def _epochs(count: int, batch: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).split(batch)


def shifted(images: Tensor, share: float) -> Tensor:
    """Move each image by up to `share` of its side, mirroring what lies beyond the border, and mirror half of them."""
    count, _, side, _ = images.shape
    most = int(side * share)
    wide = F.pad(images.float(), (most,) * 4, mode="reflect")
    tops, lefts = torch.randint(0, 2 * most + 1, (2, count)).tolist()
    moved = torch.stack([w[:, t : t + side, x : x + side] for w, t, x in zip(wide, tops, lefts, strict=True)])
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, moved.flip(3), moved)


def classifier_for(data: Labelled, name: str, recipe: Recipe, cache: Path, tell: Tell) -> Classifier:
    """Return the classifier from the cache, or train it and put it there; `name` says which data these are."""
    key = hashlib.blake2b(repr((recipe, len(data.labels))).encode(), digest_size=4).hexdigest()
    path = cache / f"view-quality-{name}-{key}.safetensors"
    if path.exists():
        net = Classifier(recipe.widths, int(data.labels.max()) + 1)
        net.load_state_dict(safetensors.torch.load_file(path))
        return net.eval()
    net = train(data, recipe, "cuda" if torch.cuda.is_available() else "cpu", tell).cpu()
    cache.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.torch.save({n: v.contiguous() for n, v in net.state_dict().items()}))
    return net
