"""Images a second of a training step and of its parts, beside the same step written with lightly.

    GENVIEW_DATA=FOLDER python benchmarks/training_step.py [--quick] [--methods NAME …]

One process, one batch at a time, from image files to new weights; `data` is decoding and cutting views in that
process, so it is what one worker gives. Both sides have the same backbone, recipe, widths of heads and optimizer.
Without lightly, or for methods that it lacks, there is no ratio. On a CPU: ResNet-18 at 64 px in float32. On CUDA:
ResNet-50 and ViT-S at 224 px in bfloat16, ours with augmentation on the device, lightly's with it in the workers'
place. `quality` is the frozen encoder of the package weighing the pairs (exactly). Rounds of the two sides take
turns and the median is taken. The last line is one JSON object: `images_per_second: {ours, lightly}` and
`ratio_to_lightly: {data, step}`, means over the methods; `step` is forward, backward and optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genview.encoders import Backbone, BackboneSettings, load_frozen
from genview.images import Archives, FolderImages, ImageSource, Subset
from genview.methods import (
    BYOL,
    DINO,
    BarlowTwins,
    Learner,
    Method,
    MoCoV2,
    MoCoV3,
    MultiPositive,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)
from genview.pairs import PairBatch, Pairs, PairSettings, RecipeName, collate
from genview.quality import ExactWeigher
from genview.training.loop import combined
from genview.training.optimizer import Sgd
from views import Case, lightlys

METHODS: dict[str, Method] = {
    "moco_v2": MoCoV2(queue=4096),
    "simsiam": SimSiam(projection=512, bottleneck=128),
    "simclr": SimCLR(hidden=512),
    "byol": BYOL(hidden=1024),
    "moco_v3": MoCoV3(hidden=1024),
    "swav": SwAV(prototypes=500, queue=0, hidden=512),
    "dino": DINO(outputs=4096, hidden=512),
    "barlow_twins": BarlowTwins(projection=1024),
    "vicreg": VICReg(projection=1024),
    "multi_positive": MultiPositive(hidden=1024),
}
LACKING = ("moco_v3", "multi_positive")
"""Methods that lightly has not."""
QUICK = ("moco_v2", "simsiam")
RECIPES: dict[str, RecipeName] = {"simclr": "simclr", "byol": "byol", "moco_v3": "byol", "barlow_twins": "byol"}
"""Of those methods; the others get that of MoCo v2. SwAV and DINO get two views here, and no small crops."""
RATE = Sgd(rate=0.001)


@dataclass
class Bench:
    """Images, device, and the backbone that both sides train; `spent` collects seconds by side and part."""

    source: ImageSource
    device: torch.device
    backbone: BackboneSettings
    size: int
    batch: int
    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds within to a part."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.spent[part].append(time.perf_counter() - start)

    def autocast(self) -> torch.autocast:
        """bfloat16 on GPUs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def images() -> tuple[ImageSource, str]:
    """Imagenette's JPEG files where GENVIEW_DATA names them, else the photographs of scikit-image."""
    if folder := os.environ.get("GENVIEW_DATA"):
        whole = Archives((f"{folder}/imagenette224/train-*.tar",))
        return Subset(whole, range(0, len(whole), max(1, len(whole) // 512))), "Imagenette at 224 px"
    from skimage import data

    place = Path(tempfile.mkdtemp())
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photograph = Image.fromarray(getattr(data, name)())
        for turn in range(16):
            photograph.rotate(turn).resize((320, 240)).save(place / f"{name}{turn}.jpg")
    return FolderImages(str(place)).build(), "photographs of scikit-image at 320 px"


def ours(bench: Bench, method: Method, weigh: ExactWeigher | None) -> Callable[[], None]:
    """Return a full step of this package, part by part."""
    views = 4 if isinstance(method, MultiPositive) else 2
    settings = PairSettings(RECIPES.get(method.kind, "moco_v2"), bench.size, positives=views)
    pairs = Pairs(bench.source, settings, seed=0, looks_on_device=bench.device.type == "cuda")
    learner: Learner = method.build(Backbone(bench.backbone)).to(bench.device)
    learner.to(memory_format=torch.channels_last)
    optimizer, order = RATE.build(learner), _in_turn(len(bench.source), bench.batch)

    def step() -> None:
        with bench.timed("ours/data"):
            batch: PairBatch = collate([pairs[0, i] for i in next(order)])
        with bench.timed("ours/augmentation"):
            shown = batch.shown(bench.device)
        weight: Tensor | None = None
        if weigh is not None and learner.weighable:
            with bench.timed("ours/quality"), bench.autocast():
                weight = weigh(shown, batch.origin, 0.0).weight
        with bench.timed("ours/forward"), bench.autocast():
            loss, _ = combined(learner(*shown), weight)
        with bench.timed("ours/backward"):
            loss.backward()
        with bench.timed("ours/optimizer"):
            learner.before_step(0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            learner.after_step(0.5)

    return step


def theirs(bench: Bench, method: Method) -> Callable[[], None]:
    """Return a full step with lightly: its transforms, collation, head and loss."""
    from lightly_steps import Step

    transform: Any = lightlys(Case("", RECIPES.get(method.kind, "moco_v2"), bench.size), normalised=True)
    backbone = Backbone(bench.backbone)
    model = Step(method.kind, backbone.net, backbone.width, asdict(method)).to(bench.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, RATE.rate, RATE.momentum, weight_decay=RATE.weight_decay)
    order = _in_turn(len(bench.source), bench.batch)

    def step() -> None:
        with bench.timed("lightly/data"):
            made: list[Any] = [transform(bench.source.image(i)) for i in next(order)]
            batch = torch.utils.data.default_collate(made)
        shown = [views.to(bench.device) for views in batch]
        with bench.timed("lightly/forward"), bench.autocast():
            loss = model(shown)
        with bench.timed("lightly/backward"):
            loss.backward()
        with bench.timed("lightly/optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def _in_turn(count: int, batch: int) -> Iterator[list[int]]:
    """Batches of numbers, over and over."""
    start = 0
    while True:
        yield [(start + i) % count for i in range(batch)]
        start += batch


def measured(bench: Bench, method: Method, weigh: ExactWeigher | None, rounds: int) -> dict[str, Any]:
    """Images a second of both sides, whole and by part."""
    steps = [ours(bench, method, weigh)]
    if method.kind not in LACKING and lightly_is_here():
        steps.append(theirs(bench, method))
    for step in steps:
        step()
    bench.spent.clear()
    for _ in range(rounds):
        for step in steps:
            step()
    parts = {name: median(values) for name, values in bench.spent.items()}
    row: dict[str, Any] = {"method": method.kind}
    for side in ("ours", "lightly"):
        own = {name.split("/")[1]: value for name, value in parts.items() if name.startswith(side)}
        if own:
            row[side] = {name: round(bench.batch / value, 1) for name, value in own.items()}
            row[side]["whole"] = round(bench.batch / sum(own.values()), 1)
    if "lightly" in row:
        row["ratio"] = {
            "data": round(parts["lightly/data"] / (parts["ours/data"] + parts["ours/augmentation"]), 2),
            "step": round(_step(parts, "lightly") / _step(parts, "ours"), 2),
        }
    return row


def _step(parts: dict[str, float], side: str) -> float:
    return sum(parts[f"{side}/{name}"] for name in ("forward", "backward", "optimizer"))


def lightly_is_here() -> bool:
    """Whether lightly, a development extra, is installed."""
    from importlib.util import find_spec

    return find_spec("lightly") is not None


def benches(quick: bool) -> Iterator[Bench]:
    """The settings that the device at hand is for."""
    source, _ = images()
    if torch.cuda.is_available():
        for name in ("resnet50", "vit_small_patch16_224"):
            yield Bench(source, torch.device("cuda"), BackboneSettings(name), 224, 128)
    else:
        yield Bench(source, torch.device("cpu"), BackboneSettings("resnet18"), 64, 32 if quick else 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, under a minute")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=None)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; one thread suffers least from other work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for bench in benches(options.quick):
        encoder = load_frozen("natural").to(bench.device)
        width = encoder.encode(torch.zeros(1, 3, 32, 32, device=bench.device)).tokens.shape[-1]
        weigh = ExactWeigher(encoder, torch.ones(width, device=bench.device) / width**0.5)
        for name in options.methods or (QUICK if options.quick else METHODS):
            row = measured(bench, METHODS[name], weigh, options.rounds or (3 if options.quick else 5))
            rows.append({"backbone": bench.backbone.name, "size": bench.size, "batch": bench.batch, **row})
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows)))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the methods that both sides have."""
    both = [row for row in rows if "lightly" in row]

    def mean(values: list[float]) -> float | None:
        return round(sum(values) / len(values), 2) if values else None

    return {
        "images": images()[1],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "methods": [row["method"] for row in rows],
        "images_per_second": {side: mean([row[side]["whole"] for row in both]) for side in ("ours", "lightly")},
        "ratio_to_lightly": {part: mean([row["ratio"][part] for row in both]) for part in ("data", "step")},
    }


if __name__ == "__main__":
    main()
