"""What weighing pairs costs, cached and exact, beside a training step of MoCo v2: for quality_cache.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from genview.encoders import Backbone, BackboneSettings, FrozenEncoder, TimmTower
from genview.foreground import AnalyseSettings, Looking
from genview.images.origin import Origin
from genview.images.source import silent
from genview.methods import MoCoV2
from genview.quality import CachedQuality, CachedWeigher, Caching, ExactWeigher, cache


def seconds(what: Callable[[], object], times: int) -> float:
    """Median time of a call, after one that does not count."""
    what()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def step_of(backbone: BackboneSettings, views: list[Tensor]) -> Callable[[], object]:
    """A step of MoCo v2 on two views: forward, backward, optimizer and queue."""
    learner = MoCoV2(queue=len(views[0]) * 8).build(Backbone(backbone)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(learner.parameters(), 0.01, momentum=0.9)
    shown = [view.to(memory_format=torch.channels_last) for view in views]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        learner(*shown).mean().backward()
        optimizer.step()
        learner.after_step(0.5)

    return step


def costs(
    weigh: CachedWeigher, exact: ExactWeigher, views: list[Tensor], origin: Origin, times: int
) -> dict[str, float]:
    """Seconds a batch that both ways of weighing take."""
    return {
        "cached_seconds": seconds(lambda: weigh(views, origin, 0.0), times),
        "exact_seconds": seconds(lambda: exact(views, origin, 0.0), times),
    }


def random_cache(
    encoder: FrozenEncoder, direction: Tensor, side: int, settings: CachedQuality, folder: Path
) -> CachedWeigher:
    """A cache of noise, as the right one takes its time."""

    class Noise:
        classes: tuple[str, ...] = ()

        def __len__(self) -> int:
            return 16

        def key(self, i: int) -> str:
            return f"{i}.png"

        def label(self, i: int) -> int | None:  # noqa: ARG002
            return None

        def image(self, i: int) -> Image.Image:
            pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3))
            return Image.fromarray(pixels.astype(np.uint8))

    looking = Looking(Noise(), encoder, AnalyseSettings(batch=4), "cpu", silent, lambda *_: None)
    return cache(Caching(looking, None, direction, settings, side), folder, seed=0, identity={})


def cost_at_full_size(folder: Path, batch: int) -> dict[str, float]:
    """Cost of the paper's shapes with random weights: ConvNeXt-Base beside a ResNet-50 at 224 px."""
    torch.manual_seed(0)
    encoder = TimmTower("convnext_base", timm.create_model("convnext_base", pretrained=False), 224)
    direction = torch.nn.functional.normalize(torch.randn(1024), dim=0)
    weigh = random_cache(encoder, direction, 224, CachedQuality(correction=16), folder)
    views, origin = list(torch.rand(2, batch, 3, 224, 224)), somewhere(batch, 16)
    found = costs(weigh, ExactWeigher(encoder, direction), views, origin, 3)
    return found | {"step_seconds": seconds(step_of(BackboneSettings("resnet50"), views), 2)} | sizes(weigh)


def somewhere(batch: int, images: int) -> Origin:
    """Origins of two random crops each of originals."""
    torch.manual_seed(0)
    corner = torch.rand(batch, 2, 2) * 0.4
    box = torch.cat([corner, corner + 0.5], dim=2)
    return Origin(torch.arange(batch) % images, torch.full((batch, 2), -1), box, torch.rand(batch, 2) < 0.5)


def sizes(weigh: CachedWeigher) -> dict[str, float]:
    """Bytes that a picture takes."""
    return {"bytes_each": weigh.grids.bytes_each}
