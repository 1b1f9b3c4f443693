"""What several tests share: images in memory, and the folder of real data where there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from genview.images import UnreadableImage
from genview.store import Evaluated, RunFolder, want_results


class Painted:
    """Images in memory: a bright disc on a coloured ground, one of `classes` colours; some may be unreadable."""

    def __init__(self, count: int = 24, size: int = 32, kinds: int = 3, broken: tuple[int, ...] = ()) -> None:
        self.count, self.size, self.broken = count, size, broken
        self.classes = tuple(f"colour{k}" for k in range(kinds))

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"colour{self.label(i)}/{i:04d}.png"

    def label(self, i: int) -> int:
        return i % len(self.classes)

    def image(self, i: int) -> Image.Image:
        if i in self.broken:
            raise UnreadableImage("made so")
        chance = np.random.default_rng(i)
        ground = np.zeros((self.size, self.size, 3))
        ground[..., self.label(i)] = chance.uniform(0.4, 0.8)
        rows, columns = np.mgrid[: self.size, : self.size]
        centre, radius = chance.uniform(0.35, 0.65, 2) * self.size, chance.uniform(0.15, 0.4) * self.size
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        ground[disc] = 0.95
        return Image.fromarray((ground * 255 + chance.uniform(0, 10, ground.shape)).clip(0, 255).astype(np.uint8))


def score(run: RunFolder, values: dict[str, float], backbone: str = "last") -> None:
    """Leave results with these values in a run folder, one for each kind, as evaluations do."""
    kinds = dict.fromkeys(name.partition("/")[0] for name in values)
    want_results(run.evaluation, list(kinds))
    for kind in kinds:
        measures = tuple((name, value) for name, value in values.items() if name.startswith(f"{kind}/"))
        result = Evaluated(f"{kind}-1", {"kind": kind}, backbone, measures, 90, 10, 32, 0, 1.5, "cpu")
        result.write(run.evaluation / backbone / f"{kind}.json")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Before whatever a module shares is made: bytes are compared, and two threads round otherwise than one.

    The models of the tests are too small to share, and cores that are busy otherwise would make them wait.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images named by GENVIEW_DATA; tests that need it skip without it."""
    folder = os.environ.get("GENVIEW_DATA")
    if not folder:
        pytest.skip("GENVIEW_DATA names no folder of real images")
    return Path(folder)


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line within this process: what takes a process five seconds to import is here already."""

    from genview.cli import main

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["genview", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return call
