"""Learners small enough for tests: every method with few numbers, a ResNet, a ViT and a lesson of few weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genview.distributed import own_rows
from genview.encoders import Backbone, BackboneSettings
from genview.generators.lesson import Lesson
from genview.methods import (
    BYOL,
    DINO,
    BarlowTwins,
    Learner,
    Losses,
    Method,
    MoCoV2,
    MoCoV3,
    MultiPositive,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)
from genview.store import write_bytes


@dataclass(frozen=True)
class Probing:
    """A probe of a training that asks a function."""

    look: Callable[[Backbone], Iterable[tuple[str, float]]]
    protocol: str = "probing-1"

    def __call__(self, backbone: Backbone) -> Iterable[tuple[str, float]]:
        return self.look(backbone)


RESNET = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, stem_stride=2)
VIT = BackboneSettings(
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True},
)
SMALL: list[Method] = [
    SimSiam(projection=16, bottleneck=8),
    MoCoV2(queue=32, embedding=8, momentum=0.9),
    MoCoV3(hidden=16, embedding=8, temperature=0.2, momentum=0.9),
    SimCLR(hidden=16, embedding=8, temperature=0.2),
    BYOL(hidden=16, embedding=8, momentum=0.9),
    SwAV(prototypes=12, queue=16, queue_from=0.0, frozen_prototypes=0.1, hidden=16, embedding=8),
    DINO(hidden=16, bottleneck=8, outputs=24, momentum=0.9, warmup=0.5, frozen_last=0.1),
    BarlowTwins(projection=16),
    VICReg(projection=16),
    MultiPositive(hidden=16, embedding=8),
]
METHODS: list[Method] = [SimSiam(projection=16, bottleneck=8), MoCoV2(queue=32, embedding=8)]
"""One without a slow copy, and one whose slow copy has its usual momentum."""


def learner_of(method: Method, backbone: BackboneSettings = RESNET, kind: torch.dtype = torch.float32) -> Learner:
    """Return a learner whose weights are the same in every call."""
    torch.manual_seed(0)
    torch.set_default_dtype(kind)
    try:
        return method.build(Backbone(backbone))
    finally:
        torch.set_default_dtype(torch.float32)


def views_for(learner: Learner, count: int = 8, seed: int = 1, kind: torch.dtype = torch.float32) -> list[Tensor]:
    """As many views as the learner takes: two, two and two small ones, or three."""
    chance = torch.Generator().manual_seed(seed)
    sizes = {"pair": [32, 32], "crops": [32, 32, 16, 16], "many": [32, 32, 32]}[learner.takes]
    return [torch.rand(count, 3, size, size, generator=chance).to(kind) for size in sizes]


def objective(losses: Tensor | Losses, weights: Tensor | None = None) -> Tensor:
    """What a loop minimises; weights B or B×P."""
    pairs, batch = (losses.pairs, losses.batch) if isinstance(losses, Losses) else (losses, torch.zeros(()))
    if pairs is None:
        return batch
    return (pairs if weights is None else pairs * weights).mean() + batch


def norms_in_eval(learner: Learner) -> Learner:
    """Let BatchNorm use its running statistics while all else is in training."""
    for part in learner.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    return learner


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Copy the gradients by name, where there are any."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Guess(Lesson):
    """Guesses the mean of images with noise from ten numbers; as small as a lesson can be."""

    last_file = "weight.json"
    prepared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(10, 1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False), nn.Tanh(), self.last)
        self.register_buffer("prepared", torch.zeros(()))
        self.seen: list[Tensor] = []

    def prepare(self, windows: Iterable[Tensor]) -> None:
        self.prepared.fill_(sum(len(images) for images in windows))

    def compiled_parts(self) -> list[nn.Module]:
        return [self.net]

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        noise = own_rows(lambda rows: torch.randn(rows, *images.shape[1:], dtype=images.dtype), len(images))
        found: Tensor = self.net(images + 0.1 * noise)
        return (found[:, 0] - images.mean(dim=(1, 2, 3))).square()

    def save(self, folder: Path) -> None:
        write_bytes(folder / self.last_file, json.dumps(self.last.bias.tolist()).encode())
