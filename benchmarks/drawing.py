"""Views of one generator, level by level, for `view_quality.py` to measure and to look at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from classifier import Labelled, Tell
from columns import Row
from genview.generators import Generator
from genview.seeds import seed_of
from in_masks import Photographs
from judge import Judge, Views
from policies import resized

BATCH = 64


def fastest() -> str:
    """Return the device that generators are to be on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Drawer:
    """Sources whose conditions are known, and a generator that draws views of them, of `side` pixels."""

    generator: Generator
    sources: Labelled
    condition: Tensor
    side: int
    guidance: float
    name: str
    tell: Tell

    @torch.no_grad()
    def draw(self, level: int, draw: int, count: int | None = None) -> Tensor:
        """One uint8 view of each of the first `count` sources; seeds do not depend on the level."""
        keys, views = self.sources.keys[:count], []
        for rows in torch.arange(len(keys)).split(BATCH):
            seeds = [seed_of(0, keys[i], draw, "view_quality") for i in rows.tolist()]
            levels, guidances = torch.full_like(rows, level), torch.full((len(rows),), self.guidance)
            made = self.generator.sample(self.condition[rows], levels, guidances, seeds)
            views.append(resized(made, self.side))
            self.tell(f"{self.name} {level}, draw {draw + 1}", int(rows[-1]) + 1, len(keys))
        return torch.cat(views)


@torch.no_grad()
def drawer(generator: Generator, sources: Labelled, side: int, guidance: float, name: str, tell: Tell) -> Drawer:
    """Encode the sources."""
    conditions = []
    for rows in torch.arange(len(sources.keys)).split(BATCH):
        images = sources.images[rows].to(fastest()) / 255
        conditions.append(generator.encoder.encode(images).embedding.cpu())
        tell(f"encoding for {name}", int(rows[-1]) + 1, len(sources.keys))
    return Drawer(generator, sources, torch.cat(conditions), side, guidance, name, tell)


@dataclass(frozen=True)
class Compared:
    """Rows and views by name; of one generator, its name and how many sources it encodes a second."""

    rows: list[Row]
    shown: dict[str, Tensor]
    name: str = ""
    encoded_per_second: float | None = None


def compare(
    judge: Judge,
    photographs: Photographs | None,
    generator: Generator,
    levels: Sequence[int],
    guidance: float,
    name: str,
    larger: Labelled | None = None,
) -> Compared:
    """Measure every level; rows are called by `name` and level.

    Where there are `larger` images of the sources, the generator is shown these, and its views are made smaller.
    """
    sources, side = larger or judge.sources, judge.sources.images.shape[-1]
    # What is to be compiled should be so before it is timed.
    drawer(generator, sources.first(BATCH), side, guidance, f"trying {name}", judge.tell).draw(levels[0], 0)
    start = time.perf_counter()
    views = drawer(generator, sources, side, guidance, name, judge.tell)
    found = Compared([], {}, name, len(judge.sources.keys) / (time.perf_counter() - start))
    photos = photographs and drawer(generator, photographs.images, side, guidance, f"photographs, {name}", judge.tell)
    for level in levels:
        row, found.shown[f"{name} {level}"] = measured(judge, views, level)
        if photographs and photos:
            row = replace(row, **photographs.kept(photos.draw(level, 0))._asdict())
        found.rows.append(row)
    return found


def measured(judge: Judge, views: Drawer, level: int) -> tuple[Row, Tensor]:
    """Measure a level; return the first draw, too."""
    start = time.perf_counter()
    first = views.draw(level, 0)
    rate = len(first) / (time.perf_counter() - start)
    again = views.draw(level, 1, len(judge.few.keys))
    return judge.row(f"{views.name} {level}", Views.all(first), Views.all(again), rate), first


def sheet(shown: Mapping[str, Tensor], path: Path, count: int = 16, side: int = 96) -> None:
    """Write a PNG with one source a row, and its views beside it."""
    paper = Image.new("RGB", (side * len(shown), side * count + 16), "white")
    for column, (name, images) in enumerate(shown.items()):
        ImageDraw.Draw(paper).text((column * side + 4, 2), name, fill="black")
        for row, image in enumerate(images[:count]):
            large = to_pil_image(image).resize((side, side), Image.Resampling.NEAREST)
            paper.paste(large, (column * side, row * side + 16))
    paper.save(path)
