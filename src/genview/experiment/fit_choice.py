"""Sizes of a generator's training that follow the number of images, for a folder that comes without an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genview.experiment.cost import OWN_NEGATIVES
from genview.experiment.fit import FitExperiment, parted
from genview.experiment.load import overridden, parse
from genview.images.source import Tell, silent
from genview.methods import MoCoV2

ENOUGH = 5_000
"""With fewer images, an encoder learns less from them than the one inside the package knows already."""
PASSES, LEAST, MOST = 10, 60_000, 3_000_000
"""Windows of each image that the generator sees, and their number at least and at most."""
ENCODER_PASSES = 22


def for_folder(
    root: Path, out: Path, overrides: list[str], tell: Tell = silent
) -> tuple[FitExperiment, dict[str, str]]:
    """Return an experiment for a folder of images, and what was chosen in it by their number, by path.

    The list of images is kept below `out`, so that a training that is continued finds the same ones.

    Raises:
        UserError: the folder has too few images, or an override does not fit.
    """
    least = {"images": {"kind": "folder", "root": str(root)}}
    plain = parse(FitExperiment, overridden(least, overrides), str(root))
    source = plain.images.build(out / "index", tell)
    chosen = choices(len(parted(source, plain.fit.held_out, plain.seed)[0]), plain)
    experiment = parse(FitExperiment, overridden({**least, **chosen}, overrides), str(root))
    given = {text.partition("=")[0].strip() for text in overrides}
    return experiment, {name: text for name, text in _paths(chosen) if name not in given}


def choices(count: int, plain: FitExperiment) -> dict[str, Any]:
    """Choose for `count` images to train on; `plain` is the experiment as it would be without.

    Few images start from the model inside the package, whose encoder is taken, unless encoder or network are others.
    Then, and always at least so long, the generator sees `LEAST` windows. CPUs that can multiply in bfloat16 do.
    """
    usual = FitExperiment(plain.images)
    assert isinstance(usual.method, MoCoV2)
    starts = count < ENOUGH and (plain.encoder, plain.encoder_weights, plain.fit.network, plain.fit.size) == (
        usual.encoder,
        usual.encoder_weights,
        usual.fit.network,
        usual.fit.size,
    )
    fit: dict[str, Any] = {
        "samples": max(LEAST, min(PASSES * count, MOST)),
        "batch": min(usual.fit.batch, power_of_two(count)),
    }
    if starts:
        fit["start_from"] = "natural"
    if plain.fit.device in ("auto", "cpu") and not torch.cuda.is_available() and has_bfloat16():
        fit["precision"] = "bfloat16"
    if starts:
        return {"fit": fit}
    images = max(LEAST, min(ENCODER_PASSES * count, MOST))
    training = {
        "length": f"{images} images",
        "warmup": f"{images // ENCODER_PASSES} images",
        "batch": min(usual.training.batch, power_of_two(count)),
    }
    if plain.method != usual.method:
        return {"training": training, "fit": fit}
    queue = max(128, min(usual.method.queue, power_of_two(int(OWN_NEGATIVES * count))))
    return {"training": training, "method": {"kind": "moco_v2", "momentum": 0.99, "queue": queue}, "fit": fit}


def power_of_two(count: int) -> int:
    """Return the largest power of two up to `count`."""
    return 1 << (max(1, count).bit_length() - 1)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16: trainings are 1.6 times as fast with AMX, 1.5 with AVX-512 BF16."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(ask() for ask in asked if ask)


def _paths(content: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        path = f"{above}{name}"
        found += _paths(value, f"{path}.") if isinstance(value, dict) else [(path, str(value))]
    return found
