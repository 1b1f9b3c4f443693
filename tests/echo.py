"""A generator without a network, made-up analyses for it, and what the tests of the generate stage share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from genview.encoders import Encoded
from genview.generators import GenerateSettings, Job, Maker, Plan, Text, ViewTable, generate, make_plan
from genview.generators.sampler import noise_for
from genview.noise import Adaptive
from genview.store import read_table, write_table

COUNT = 10


class Echo:
    """Its views are the seed's noise, lighter with guidance and with a prompt; `calls` has the size of each batch.

    Args:
        room: rows at once that fit into memory.
        black: seeds whose views overflow, and `exactly_black` those that do so in float32 too.
        pause: seconds a batch takes.
    """

    name = "echo"
    size = 8

    def __init__(
        self,
        *,
        room: int = 1000,
        black: Sequence[int] = (),
        exactly_black: Sequence[int] = (),
        pause: float = 0.0,
    ) -> None:
        self.encoder = self
        self.room, self.black, self.exactly_black, self.pause = room, black, exactly_black, pause
        self.calls: list[int] = []
        self.exacts = 0

    def encode(self, images: Tensor) -> Encoded:
        flat = torch.nn.functional.avg_pool2d(images, 4).flatten(1)[:, :4] - 0.5
        return Encoded(flat[:, None], flat, (1, 1))

    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        if len(condition) > self.room:
            raise torch.OutOfMemoryError
        self.calls.append(len(condition))
        time.sleep(self.pause)
        noise = noise_for(seeds, (3, self.size, self.size), "latent") * level.view(-1, 1, 1, 1) / 400
        light = torch.tensor([len(text.prompt) - len(text.negative) for text in texts or [Text()] * len(condition)])
        views = (noise + guidance.view(-1, 1, 1, 1) + light.view(-1, 1, 1, 1) / 10).clamp(1 / 255, 1)
        views = (views * 255).to(torch.uint8)
        views[[seed in self.black for seed in seeds]] = 0
        return views

    def exact(self) -> Echo:
        self.exacts += 1
        return Echo(black=self.exactly_black) if self.black else self

    def to(self, device: torch.device | str) -> Self:  # noqa: ARG002
        return self


def analysed(folder: Path, count: int = COUNT, part: int = 4, order: Sequence[int] | None = None) -> Path:
    """Make up an analysis of `count` images in parts of `part`, in some order; return its folder."""
    chance = np.random.default_rng(0)
    ratio = chance.uniform(size=count).astype(np.float32)
    embedding = chance.normal(size=(count, 4)).astype(np.float16)
    rows = np.arange(count) if order is None else np.array(order)
    for number, start in enumerate(range(0, count, part)):
        cut = rows[start : start + part]
        columns = {"key": [key(i) for i in cut], "ratio": ratio[cut], "embedding": embedding[cut]}
        write_table(folder / f"part-{number:05d}.parquet", columns)
    return folder


def key(i: int) -> str:
    return f"folder/ä {i}.png"


def job(analysis: Path, **changes: object) -> Job:
    made = Job(analysis=analysis, policy=Adaptive(), guidance=0.5, seed=7)
    return replace(made, **changes)  # type: ignore[arg-type]


def quiet(_what: str, _done: int, _total: int, _note: str) -> None:
    return


def planned(folder: Path, settings: GenerateSettings, **changes: object) -> Plan:
    """Plan the views of the analysis beside `folder`."""
    return make_plan(job(folder.parent / "analysis", **changes), settings, folder, identity={"a": 1}, tell=quiet)


def make(
    folder: Path, settings: GenerateSettings, echo: Echo | None = None, batch: int = 4, **changes: object
) -> ViewTable:
    """Make the views of the analysis beside `folder`, which is made up where there is none."""
    analysis = folder.parent / "analysis"
    if not analysis.exists():
        analysed(analysis)
    maker = Maker(echo or Echo(), batch)
    generate(job(analysis, **changes), maker, settings, folder, identity={"a": 1}, tell=quiet)
    return ViewTable(folder)


def sidecars(folder: Path) -> dict[str, np.ndarray]:
    """Return the rows of all sidecars."""
    return read_table(sorted(folder.glob("part-*.parquet")))


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
