"""Views a second of one core: genview's pairs beside the transforms of lightly, from the same image files.

    GENVIEW_DATA=FOLDER python benchmarks/views.py [--images N] [--rounds N]

FOLDER holds `imagenette224/train-*.tar` and `cifar10/train-*.zip`. Both read and decode the same files, crop, jitter,
grey, blur and flip with the same probabilities, and end in two views an image. genview's are uint8, as they go to
the device; lightly's are normalised floats, as its transforms make them (`floats` tells what lightly's take without
normalising). genview resizes bicubically, lightly bilinearly, which is cheaper. What is counted is the time of the
processor that the one process uses, in rounds that take turns, of which the median is taken, so that other work on
the machine disturbs little. `parts` are microseconds an image of genview's pair. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import torch
from PIL import Image

from genview.images import Archives, Subset
from genview.pairs import Pairs, PairSettings, RecipeName, pixels, recipe


@dataclass(frozen=True)
class Case:
    """A recipe on images; `images` is a folder of archives below the data."""

    images: str
    recipe: RecipeName
    size: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.images}, {self.recipe}, {self.size} px"


CASES = (
    Case("imagenette224/train-*.tar", "moco_v2", 224),
    Case("imagenette224/train-*.tar", "simclr", 224),
    Case("imagenette224/train-*.tar", "byol", 224),
    Case("imagenette224/train-*.tar", "moco_v2", 64),
    Case("cifar10/train-*.zip", "small", 32),
)


def lightlys(case: Case, normalised: bool) -> Callable[[Image.Image], object]:
    """Return lightly's transform for a case."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.transforms.moco_transform import MoCoV2Transform
    from lightly.transforms.simclr_transform import SimCLRTransform
    from lightly.transforms.utils import IMAGENET_NORMALIZE

    statistics, size = IMAGENET_NORMALIZE if normalised else None, case.size
    match case.recipe:
        case "simclr":
            return SimCLRTransform(size, normalize=statistics)
        case "byol":
            first = BYOLView1Transform(size, normalize=statistics)
            return BYOLTransform(first, BYOLView2Transform(size, normalize=statistics))
        case other:
            return MoCoV2Transform(size, gaussian_blur=0.0 if other == "small" else 0.5, normalize=statistics)


def seconds(work: Callable[[int], object], count: int) -> float:
    """Time of the processor that `count` images take."""
    start = time.process_time()
    for i in range(count):
        work(i)
    return time.process_time() - start


@contextmanager
def timed(spent: dict[str, float], part: str) -> Iterator[None]:
    start = time.process_time()
    yield
    spent[part] += time.process_time() - start


def parts(case: Case, source: Archives | Subset) -> dict[str, float]:
    """Microseconds an image that the steps of a pair take."""
    spent: dict[str, float] = defaultdict(float)
    recipes, chance = recipe(case.recipe).full, Random(0)
    for i in range(len(source)):
        with timed(spent, "read and header"):
            image = source.opened(i)
        with timed(spent, "draw"):
            looks = [recipes[n % len(recipes)].draw(image.size, chance) for n in range(2)]
        with timed(spent, "decode"):
            whole = image.pixels(pixels.shrink(image.size, [(look, case.size) for look in looks]))
        for look in looks:
            with timed(spent, "crop and resize"):
                view, _ = pixels.cut(whole, look, case.size)
            with timed(spent, "jitter"):
                view = pixels.applied(view, look._replace(grey=False, sigma=0.0, solarised=False, flipped=False))
            with timed(spent, "blur"):
                view = pixels.blurred(view, look.sigma) if look.sigma else view
            with timed(spent, "grey, solarise, flip"):
                pixels.applied(view, look._replace(factors=(1.0, 1.0, 1.0, 0.0), sigma=0.0))
    return {name: round(1e6 * value / len(source), 1) for name, value in spent.items()}


def measured(case: Case, source: Archives | Subset, rounds: int) -> dict[str, object]:
    """Images a second of both, and how many times as many ours are."""
    pairs, count = Pairs(source, PairSettings(recipe=case.recipe, size=case.size), seed=0), len(source)
    theirs = {normalised: lightlys(case, normalised) for normalised in (True, False)}
    works: dict[str, Callable[[int], object]] = {
        "genview": lambda i: pairs[0, i],
        "cut": lambda i: late[0, i],
        "lightly": lambda i: theirs[True](source.image(i)),
        "floats": lambda i: theirs[False](source.image(i)),
    }
    late = Pairs(source, pairs.settings, seed=0, looks_on_device=True)
    times: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work, count)
            if turn:  # the first round warms up
                times[name].append(spent)
    rate = {name: round(count / median(values), 1) for name, values in times.items()}
    ratio = median(b / a for a, b in zip(times["genview"], times["lightly"], strict=True))
    return {"case": case.name, **rate, "ratio": round(ratio, 2), "parts": parts(case, source)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = Path(os.environ["GENVIEW_DATA"]), []
    for case in CASES:
        whole = Archives((str(data / case.images),))
        source = Subset(whole, range(0, len(whole), max(1, len(whole) // options.images))[: options.images])
        rows.append(measured(case, source, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"processor": platform.processor() or platform.machine(), "cases": rows}))


if __name__ == "__main__":
    main()
