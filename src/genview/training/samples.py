"""Views of held-out images in the course of a generator's training, and what little they say of its quality."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders import FrozenEncoder
from genview.generators.generator import Generator
from genview.seeds import seed_of
from genview.store import write_arrays

LEVELS = (0, 200, 400)
SHOWN = 8
BATCH = 64
SIDE = 64
"""Side in pixels of the views of which `BATCH` are drawn at once; of larger ones only as many pixels."""


def draw(generator: Generator, images: Tensor, seed: int) -> Tensor:
    """Draw two views of every image at each of `LEVELS`, always from the same seeds.

    Args:
        generator: it is asked for views without guidance.
        images: B×3×S×S in [0, 1], on the generator's device.
        seed: the run's.

    Returns:
        uint8 2×L×B×3×size×size on the CPU.
    """
    condition = torch.cat([generator.encoder.encode(part).embedding for part in images.split(BATCH)])
    return torch.stack(
        [torch.stack([_views(generator, condition, level, seed, k) for level in LEVELS]) for k in range(2)]
    )


def _views(generator: Generator, condition: Tensor, level: int, seed: int, k: int) -> Tensor:
    views = []
    rows = max(1, min(BATCH, BATCH * SIDE**2 // generator.size**2))
    for start in range(0, len(condition), rows):
        part = condition[start : start + rows]
        seeds = [seed_of(seed, f"held out {start + row}", k, "sample") for row in range(len(part))]
        levels = torch.full((len(part),), level)
        views.append(generator.sample(part, levels, torch.ones(len(part)), seeds))
    return torch.cat(views)


def scores(images: Tensor, views: Tensor, encoder: FrozenEncoder) -> Iterator[tuple[str, float]]:
    """Yield, for each level: how far views lie from their source and draws from one another, and what they share.

    `rmse` is the root mean square difference from the source, in [0, 1]; `apart` that between the two draws; and
    `similarity` the cosine of the mean tokens of view and source in the frozen encoder.

    Args:
        images: the sources, B×3×S×S in [0, 1].
        views: as `draw` returns them, of side S.
        encoder: the generator's own.
    """
    known = _means(encoder, images)
    sources = images.cpu()
    for level, pair in zip(LEVELS, (views.float() / 255).unbind(dim=1), strict=True):
        yield f"rmse@level={level}", float((pair - sources).square().mean().sqrt())
        yield f"apart@level={level}", float((pair[0] - pair[1]).square().mean().sqrt())
        seen = torch.stack([_means(encoder, draws.to(images.device)) for draws in pair])
        yield f"similarity@level={level}", float(F.cosine_similarity(seen, known[None], dim=-1).mean())


def _means(encoder: FrozenEncoder, images: Tensor) -> Tensor:
    return torch.cat([encoder.encode(part).tokens.mean(dim=1) for part in images.split(BATCH)])


def keep(folder: Path, step: int, images: Tensor, views: Tensor) -> Path:
    """Write the first `SHOWN` images and the first of their views to `folder` for the page; return the file.

    It has `images` N×S×S×3, `views` L×N×S×S×3, `levels` L, and is named by the step.
    """
    path = folder / f"step-{step:08d}.npz"
    arrays = {
        "images": (images[:SHOWN] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy(),
        "views": views[0, :, :SHOWN].permute(0, 1, 3, 4, 2).numpy(),
        "levels": torch.tensor(LEVELS).numpy(),
    }
    write_arrays(path, arrays)
    return path
