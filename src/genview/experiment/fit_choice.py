"""Sizes of a generator's training that follow the number of images, for a folder that comes without an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genview.experiment.cost import OWN_NEGATIVES
from genview.experiment.fit import FitExperiment, parted
from genview.experiment.load import overridden, parse, read_yaml
from genview.images.source import Tell, silent
from genview.methods import MoCoV2
from genview.store import RunFolder

ENOUGH = 5_000
"""With fewer images, an encoder learns less from them than the one inside the package knows already."""
PASSES, LEAST, MOST = 10, 60_000, 3_000_000
"""Windows of each image that the generator sees, and their number at least and at most."""
ENCODER_PASSES = 22


def for_folder(
    root: Path, out: Path, overrides: list[str], tell: Tell = silent
) -> tuple[FitExperiment, dict[str, str]]:
    """Return an experiment for a folder of images, and what was chosen in it by their number, by path.

    The list of images is kept below `out`, so that a training that is continued finds the same ones; and the
    precision of the experiment that is there stays, whatever machine goes on with it.

    Raises:
        UserError: the folder has too few images, or an override does not fit.
    """
    least = {"images": {"kind": "folder", "root": str(root)}}
    plain = parse(FitExperiment, overridden(least, overrides), str(root))
    source = plain.images.build(out / "index", tell)
    given = {text.partition("=")[0].strip() for text in overrides}
    count = len(parted(source, plain.fit.held_out, plain.seed)[0])
    chosen = choices(count, plain, may_start=given.isdisjoint({"fit", "fit.start_from"}))
    if there := _precision_in(out):
        chosen["fit"]["precision"] = there
    experiment = parse(FitExperiment, overridden({**least, **chosen}, overrides), str(root))
    return experiment, {name: text for name, text in _paths(chosen) if given.isdisjoint(_with_parents(name))}


def choices(count: int, plain: FitExperiment, *, may_start: bool = True) -> dict[str, Any]:
    """Choose for `count` images to train on; `plain` is the experiment as it would be without.

    Few images start from the model inside the package, whose encoder is taken, unless encoder or network are others,
    or not `may_start`, where the user has said what to start from, or that it is nothing.
    The generator always sees at least `LEAST` windows. CPUs that can multiply in bfloat16 do.
    """
    usual = FitExperiment(plain.images)
    assert isinstance(usual.method, MoCoV2)
    starts = may_start and count < ENOUGH and _network(plain) == _network(usual)
    fit: dict[str, Any] = {
        "samples": max(LEAST, min(PASSES * count, MOST)),
        "batch": min(usual.fit.batch, power_of_two(count)),
    }
    if starts:
        fit["start_from"] = "natural"
    if plain.fit.device in ("auto", "cpu") and not torch.cuda.is_available() and has_bfloat16():
        fit["precision"] = "bfloat16"
    if starts or not plain.trains_encoder:
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


def _network(experiment: FitExperiment) -> tuple[object, ...]:
    """What must be as usual for the weights of the model inside the package to fit."""
    return experiment.encoder, experiment.encoder_weights, experiment.fit.network, experiment.fit.size


def _precision_in(out: Path) -> str | None:
    """The precision of the experiment that a folder holds; None where it holds none."""
    file = RunFolder(out).experiment
    fit = read_yaml(file).get("fit") if file.exists() else None
    found: str | None = fit.get("precision") if isinstance(fit, dict) else None
    return found


def power_of_two(count: int) -> int:
    """Return the largest power of two up to `count`."""
    return 1 << (max(1, count).bit_length() - 1)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16: trainings are 1.6 times as fast with AMX, 1.5 with AVX-512 BF16."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(ask() for ask in asked if ask)


def _with_parents(path: str) -> list[str]:
    """'a.b.c' gives a, a.b and a.b.c: who says one of them says 'a.b.c'."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _paths(content: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        path = f"{above}{name}"
        found += _paths(value, f"{path}.") if isinstance(value, dict) else [(path, str(value))]
    return found
