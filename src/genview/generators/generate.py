"""The generate stage: one table of conditions in, shards of views out; no image is read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genview.generators.generator import Generator
from genview.noise import NoisePolicy
from genview.seeds import seed_of
from genview.store import claim, sweep, write_table, write_tar
from genview.store.table import Column

Tell = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class GenerateSettings:
    """Views per image, views per shard, and how they are stored ('jpeg' at quality 95, or lossless 'png')."""

    draws: int = 1
    shard: int = 512
    format: Literal["jpeg", "png"] = "jpeg"


@dataclass(frozen=True)
class Job:
    """What there is to make: the analysed images and how each is to vary.

    `keys` N, `ratio` N and `embedding` N×E come from the analysis; `guidance` and `batch` from the generator.
    """

    keys: Sequence[str]
    ratio: np.ndarray
    embedding: np.ndarray
    policy: NoisePolicy
    guidance: float
    batch: int
    seed: int


def generate(
    job: Job,
    generator: Generator,
    settings: GenerateSettings,
    folder: Path,
    *,
    identity: Mapping[str, object],
    tell: Tell,
) -> None:
    """Make `draws` views of every image, shard by shard, leaving out the shards that are already there.

    A shard is a tar of images and, written after it, a Parquet part that says where each view lies; the part
    marks the shard as done. Seeds come from run seed, key and draw, so no view depends on shards or batches.

    Raises:
        UserError: the folder holds views of other settings (`identity`), or the disk is full.
    """
    claim(folder, {**identity, "shard": settings.shard, "draws": settings.draws, "format": settings.format})
    sweep(folder)
    total = len(job.keys) * settings.draws
    for number, start in enumerate(range(0, total, settings.shard)):
        part = folder / f"part-{number:05d}.parquet"
        numbers = range(start, min(start + settings.shard, total))
        if not part.exists():
            rows = _rows(job, numbers, settings.draws)
            views, scores = _sampled(job, generator, rows, _from(start, total, tell))
            _write_shard(rows, views, scores, job, settings, part)
        tell("generate", numbers.stop, total, "")


def _from(start: int, total: int, tell: Tell) -> Callable[[int], None]:
    return lambda done: tell("generate", start + done, total, "")


@dataclass(frozen=True)
class Rows:
    """The views of one shard: index of each one's image, its draw, key, seed and noise level."""

    images: np.ndarray
    draws: np.ndarray
    keys: list[str]
    seeds: list[int]
    levels: np.ndarray


def _rows(job: Job, numbers: range, draws_each: int) -> Rows:
    """Plan the views `numbers` of a job in which every image has `draws_each` views, one after another."""
    images, draws = np.divmod(np.arange(numbers.start, numbers.stop), draws_each)
    keys = [job.keys[i] for i in images]
    levels = np.empty(len(keys), dtype=np.int64)
    for draw in range(draws_each):
        chosen = np.flatnonzero(draws == draw)
        names = [keys[i] for i in chosen]
        levels[chosen] = job.policy.levels_of(names, job.ratio[images[chosen]], draw=draw, seed=job.seed)
    seeds = [seed_of(job.seed, key, int(draw), "view") for key, draw in zip(keys, draws, strict=True)]
    return Rows(images, draws, keys, seeds, levels)


def _sampled(job: Job, generator: Generator, rows: Rows, tell: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Make the views of `rows`, uint8 M×3×H×W, and the cosine similarity M of the embeddings of view and source."""
    views, scores = [], []
    for start in range(0, len(rows.keys), job.batch):
        cut = slice(start, start + job.batch)
        condition = torch.from_numpy(job.embedding[rows.images[cut]].astype(np.float32))
        guidance = torch.full((len(condition),), job.guidance)
        made = generator.sample(condition, torch.from_numpy(rows.levels[cut]), guidance, rows.seeds[cut])
        embedding = generator.encoder.encode(made.float() / 255).embedding.cpu()
        views.append(made)
        scores.append(F.cosine_similarity(embedding, condition))
        tell(start + len(made))
    return torch.cat(views), torch.cat(scores)


def _write_shard(rows: Rows, views: Tensor, scores: Tensor, job: Job, settings: GenerateSettings, part: Path) -> None:
    """Write the tar, then the table that marks it as done."""
    extension = {"jpeg": "jpg"}.get(settings.format, settings.format)
    members = []
    for i, view in enumerate(views):
        name = f"{part.stem}-{i:06d}"
        about = {
            "key": rows.keys[i],
            "draw": int(rows.draws[i]),
            "level": int(rows.levels[i]),
            "seed": rows.seeds[i],
        }
        members += [
            (f"{name}.{extension}", encoded(view, settings.format)),
            (f"{name}.json", json.dumps(about, ensure_ascii=False).encode()),
        ]
    tar = part.with_suffix(".tar")
    places = np.array(write_tar(tar, members)[::2], dtype=np.int64)
    columns: dict[str, Column] = {
        "key": rows.keys,
        "draw": rows.draws.astype(np.int32),
        "level": rows.levels.astype(np.int32),
        "seed": np.array(rows.seeds, dtype=np.int64),
        "guidance": np.full(len(views), job.guidance, dtype=np.float32),
        "shard": [tar.name] * len(views),
        "offset": places[:, 0],
        "length": places[:, 1],
        "score": scores.numpy(),
    }
    write_table(part, columns)


def encoded(view: Tensor, format_: str) -> bytes:
    """Return a view, uint8 3×S×S, as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(buffer, format_, quality=95)
    return buffer.getvalue()
