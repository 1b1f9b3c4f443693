"""Views a second, three ways side by side on the same weights, steps, size and precision.

    python benchmarks/generation.py --quick

The ways are (loop) a plain loop that calls diffusers' pipeline once an image, (pipeline) the same pipeline on batches
of one noise level, and (ours) mixed levels in one batch. Each starts from decoded images and ends in JPEG bytes, so
image encoder, VAE, resizing and compression count. Ways take turns, and the best of several turns counts, as other
work on the machine only ever adds time. On a CPU the networks have the shapes of Stable unCLIP with a tenth of its
channels and random weights; on CUDA its full size, and every preset is measured. The last line printed is one JSON
object; what was not measured is null there.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import pil_to_tensor

from genview.generators import Unclip, UnclipSettings
from genview.generators.shard import encoded
from genview.images import square
from unclip_shapes import FULL, TENTH, random_pipeline

LEVELS = (0, 100, 200, 300, 400)


@dataclass(frozen=True)
class Way:
    """One way measured: views a second, and how many floating-point operations a second that is."""

    name: str
    views_per_second: float
    tflops: float
    share_of_peak: float


@dataclass(frozen=True)
class Trial:
    """What the ways have in common: images, settings, and the device's measured matrix peak in TFLOP/s."""

    images: list[Image.Image]
    settings: UnclipSettings
    device: str
    peak: float

    @property
    def levels(self) -> list[int]:
        """One of the paper's levels for each image."""
        return [LEVELS[i % len(LEVELS)] for i in range(len(self.images))]


def by_loop(pipeline: Any, trial: Trial) -> list[bytes]:
    """Call the pipeline once an image."""
    made = []
    for image, level in zip(trial.images, trial.levels, strict=True):
        made += _called(pipeline, trial, [image], level)
    return made


def by_pipeline(pipeline: Any, trial: Trial, batch: int) -> list[bytes]:
    """Call the pipeline on full batches, each of one level: the best that it can do."""
    made = []
    for start in range(0, len(trial.images), batch):
        made += _called(pipeline, trial, trial.images[start : start + batch], trial.levels[start])
    return made


def _called(pipeline: Any, trial: Trial, images: list[Image.Image], level: int) -> list[bytes]:
    settings = trial.settings
    found = pipeline(
        image=images,
        prompt=[""] * len(images),
        noise_level=level,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        height=settings.size,
        width=settings.size,
    ).images
    return [_jpeg(image.resize((settings.save_size,) * 2)) for image in found]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def by_ours(generator: Unclip, trial: Trial, batch: int) -> list[bytes]:
    """Encode the images, then sample batches of mixed levels."""
    made, size = [], generator.encoder.size
    for start in range(0, len(trial.images), batch):
        chosen = trial.images[start : start + batch]
        pixels = torch.stack([pil_to_tensor(square(image, size)) for image in chosen]).float() / 255
        condition = generator.encoder.encode(pixels.to(trial.device)).embedding
        level = torch.tensor(trial.levels[start : start + batch])
        guidance = torch.full((len(chosen),), trial.settings.guidance)
        views = generator.sample(condition, level, guidance, range(start, start + len(chosen)))
        made += [encoded(view, "jpeg") for view in views]
    return made


def measured(ways: Mapping[str, Callable[[], list[bytes]]], trial: Trial, flops: float, turns: int) -> list[Way]:
    """Time ways in turns, after a first turn that warms up."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(turns + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            count = len(work())
            if turn:
                best[name] = min(best[name], (time.perf_counter() - start) / count)
    found = []
    for name, seconds in best.items():
        rate = flops / seconds / 1e12
        found.append(Way(name, 1 / seconds, rate, rate / trial.peak))
        print(f"{name:<10}{1 / seconds:>10.3f} views/s {rate:>9.3f} TFLOP/s {rate / trial.peak:>7.0%} of peak")
    return found


def flops_of(generator: Unclip, trial: Trial) -> float:
    """Floating-point operations of one view made alone, image encoder included."""
    one = replace(trial, images=trial.images[:1])
    with FlopCounterMode(display=False) as counter:
        by_ours(generator, one, 1)
    return float(counter.get_total_flops())


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of the device's best large matrix product in this precision."""
    side, best = (8192 if device == "cuda" else 1536), float("inf")
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def photographs(count: int, side: int = 320) -> list[Image.Image]:
    """Made-up pictures with large shapes and some grain, so that JPEG has about the usual work."""
    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        grain = np.asarray(coarse, dtype=np.float64) + chance.normal(0, 8, (side, side, 3))
        pictures.append(Image.fromarray(grain.clip(0, 255).astype(np.uint8)))
    return pictures


def three_ways(folder: Path, trial: Trial, batch: int, turns: int) -> list[Way]:
    """Measure loop, pipeline and ours on the weights in `folder`."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    generator = trial.settings.load(trial.device)
    dtype = generator.precision
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder).to(trial.device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    flops = flops_of(generator, trial)
    few = replace(trial, images=trial.images[: max(2, batch // 2)])
    ways = {
        "loop": lambda: by_loop(pipeline, few),
        "pipeline": lambda: by_pipeline(pipeline, trial, batch),
        "ours": lambda: by_ours(generator, trial, batch),
    }
    return measured(ways, trial, flops, turns)


def on_cpu(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the three ways with a tenth of the channels."""
    with tempfile.TemporaryDirectory() as place:
        folder = random_pipeline(TENTH, Path(place) / "unclip")
        settings = UnclipSettings(
            weights=str(folder), steps=args.steps, size=TENTH.size, save_size=TENTH.size * 2 // 3, precision="float32"
        )
        trial = Trial(photographs(args.batch), settings, "cpu", matrix_peak("cpu", torch.float32))
        print(
            f"CPU, {torch.get_num_threads()} threads, {TENTH.words}, {args.steps} steps of PNDM, batch {args.batch}"
        )
        return summary(three_ways(folder, trial, args.batch, args.turns), trial)


def on_cuda(args: argparse.Namespace) -> dict[str, Any] | None:
    """Measure the three ways and every preset at full size; None where there is no GPU."""
    if not torch.cuda.is_available():
        print("CUDA: not measured, there is no GPU here")
        return None
    with tempfile.TemporaryDirectory() as place:
        folder = random_pipeline(FULL, Path(place) / "unclip", torch.bfloat16, "cuda")
        paper = UnclipSettings(weights=str(folder), precision="bfloat16", compile=True)
        trial = Trial(photographs(args.batch), paper, "cuda", matrix_peak("cuda", torch.bfloat16))
        print(f"{torch.cuda.get_device_name()}, {FULL.words}, bfloat16, batch {args.batch}")
        found = summary(three_ways(folder, trial, args.batch, args.turns), trial)
        found["presets"] = {}
        for name, options in UnclipSettings.presets.items():
            settings = replace(paper, **options)
            own, generator = replace(trial, settings=settings), settings.load("cuda")
            work = {name: partial(by_ours, generator, own, args.batch)}
            found["presets"][name] = asdict(measured(work, own, flops_of(generator, own), args.turns)[0])
        return found


def summary(ways: Sequence[Way], trial: Trial) -> dict[str, Any]:
    """Return what the last line says of some ways, and print their ratios."""
    rates = {way.name: way.views_per_second for way in ways}
    ratio = {name: rate / rates["loop"] for name, rate in rates.items()}
    print("to the loop: " + ", ".join(f"{name} {value:.2f}x" for name, value in ratio.items()))
    return {
        "images_per_second": rates,
        "ratio_to_loop": ratio["ours"],
        "ratio_to_pipeline": rates["ours"] / rates["pipeline"],
        "tflops": {way.name: way.tflops for way in ways},
        "share_of_peak": {way.name: way.share_of_peak for way in ways},
        "matrix_peak_tflops": trial.peak,
        "steps": trial.settings.steps,
        "size": trial.settings.size,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that this machine can."""
    known = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known.add_argument("--quick", action="store_true", help="the CPU part alone, under a minute")
    known.add_argument("--batch", type=int, default=8)
    known.add_argument("--steps", type=int, help="of the CPU part (default 20; 5 with --quick)")
    known.add_argument("--turns", type=int, help="timings of which the best counts (default 3; 2 with --quick)")
    args = known.parse_args(argv)
    args.steps = args.steps or (5 if args.quick else 20)
    args.turns = args.turns or (2 if args.quick else 3)
    torch.manual_seed(0)
    found = on_cpu(args)
    cuda = None if args.quick else on_cuda(args)
    print(json.dumps({"benchmark": "generation", "batch": args.batch, **found, "cuda": cuda}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
