"""The policies of `view_quality.py`: noise by foreground, constant or random; unlike views kept, dropped or redrawn.

The stages of the package themselves analyse the sources and make the views, so what is measured is what a run gets.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from classifier import Labelled, Tell
from columns import Row
from genview.foreground import AnalyseSettings, Looking, analyse
from genview.generators import (
    FilterSettings,
    GenerateSettings,
    Generator,
    Job,
    Maker,
    ScoreSettings,
    ViewTable,
    generate,
)
from genview.noise import Adaptive, Constant, NoisePolicy, Random
from judge import Judge, Views

NOISE: Mapping[str, NoisePolicy] = {"adaptive": Adaptive(), "constant": Constant(200), "random": Random()}
"""Each measured without scores, all views kept."""
POLICIES = (*NOISE, "keep", "drop", "redraw")
"""The filters are measured with adaptive noise; 'keep' computes scores, and no more."""
PLAIN = GenerateSettings(draws=2, format="png")
BATCH = 64


class Sources:
    """Labelled images as a source of images."""

    def __init__(self, images: Labelled) -> None:
        self.images, self.classes = images, ()

    def __len__(self) -> int:
        return len(self.images.keys)

    def key(self, i: int) -> str:
        """As labelled."""
        return self.images.keys[i]

    def image(self, i: int) -> Image.Image:
        """As labelled."""
        image: Image.Image = to_pil_image(self.images.images[i])
        return image

    def label(self, i: int) -> int | None:
        """As labelled."""
        return int(self.images.labels[i])


@dataclass(frozen=True)
class Bench:
    """What all policies share: judge, generator and its guidance, and the folder in which the stages work.

    The filters reject the share `rejected` of views that are least like their source, as the generator's encoder
    sees it.
    """

    judge: Judge
    generator: Generator
    guidance: float
    device: str
    rejected: float
    folder: Path
    tell: Tell

    def analyse(self) -> None:
        """Analyse the sources, for their foreground."""
        source, settings = Sources(self.judge.sources), AnalyseSettings(sample=len(self.judge.sources.keys))
        looking = Looking(source, self.generator.encoder, settings, self.device, self._told, _must_be_readable)
        analyse(looking, self.folder / "analysis", seed=0, identity={})

    def made(self, name: str, noise: NoisePolicy, settings: GenerateSettings) -> tuple[ViewTable, float]:
        """Make two draws of every source; return them and how many were kept a second."""
        maker = Maker(self.generator, BATCH, device=self.device)
        job = Job(self.folder / "analysis", noise, self.guidance, seed=0)
        start = time.perf_counter()
        generate(job, maker, settings, self.folder / name, identity={}, tell=self._told)
        views = ViewTable(self.folder / name)
        return views, len(views) / (time.perf_counter() - start)

    def row(self, name: str, views: ViewTable, rate: float) -> tuple[Row, Tensor]:
        """Judge the first draw of every source, beside the second of a few; return the views for looking at, too."""
        first, again = (_draw(views, sources, n) for n, sources in enumerate((self.judge.sources, self.judge.few)))
        return self.judge.row(name, first, again, rate), first.images

    def _told(self, what: str, done: int, total: int, _note: str) -> None:
        if done:
            self.tell(what, done, total)


def measure(bench: Bench, names: Sequence[str]) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure policies by name; return rows and views by name. A filter's row says how many it kept."""
    bench.analyse()
    found = {name: bench.made(name, policy, PLAIN) for name, policy in NOISE.items() if name in names}
    if not found.keys() >= set(names):
        scored = replace(PLAIN, scores=ScoreSettings())
        found["keep"] = bench.made("keep", Adaptive(), scored)
        lowest = float(np.nanquantile(found["keep"][0].scores, bench.rejected))
        for name in ("drop", "redraw"):
            if name in names:
                found[name] = bench.made(name, Adaptive(), replace(scored, filter=FilterSettings(name, lowest)))
    judged = {name: bench.row(name, *found[name]) for name in names}
    return [row for row, _ in judged.values()], {name: images for name, (_, images) in judged.items()}


def measured(
    judge: Judge, generator: Generator, names: Sequence[str], *, guidance: float, rejected: float, tell: Tell
) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure policies in a folder that is thrown away; see `measure`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        return measure(Bench(judge, generator, guidance, device, rejected, Path(folder), tell), names)


def _draw(views: ViewTable, sources: Labelled, draw: int) -> Views:
    """Return one draw of each source, resized to its side; white where it was not kept."""
    images = torch.full_like(sources.images, 255)
    kept = torch.zeros(len(images), dtype=torch.bool)
    for i, key in enumerate(sources.keys):
        for row in views.rows(key):
            if int(views.draws[row]) == draw:
                images[i], kept[i] = resized(pil_to_tensor(views.view(row)[0])[None], images.shape[-1])[0], True
    return Views(images, kept)


def resized(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images to a side in pixels."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True).round().clamp(0, 255).byte()


def _must_be_readable(key: str, reason: str) -> None:
    raise AssertionError(f"{key}: {reason}")
