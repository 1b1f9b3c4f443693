"""Export: what is pointed at is found out, read strictly, and written in another layout with a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from genview.encoders.backbone import IMAGENET_MEAN, IMAGENET_STD, BackboneSettings, check_images, load
from genview.encoders.foreign import Foreign, Hints, read_foreign
from genview.encoders.vit import built_for
from genview.errors import UserError
from genview.experiment.facts import facts_of, name_of
from genview.experiment.load import load as load_experiment
from genview.experiment.schema import Experiment
from genview.export import TARGETS, Facts, Source, TargetName, export_to, usage
from genview.report import Result
from genview.store import RunFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to export, to which layout, where to, and what cannot be found out.

    `place` is a run folder, a file of weights in one, a folder that was exported, or a checkpoint of others, which
    `hints` help to read. `size`: side in pixels of the images it is for. `data`: what to call the images it was
    trained on.
    """

    place: Path
    to: TargetName
    out: Path
    hints: Hints = Hints()  # noqa: RUF009  # frozen
    size: int | None = None
    data: str | None = None


def export_backbone(wish: Wish, say: Say) -> None:
    """Export; `say` is told what was recognised, taken and left out, how the check came out, and how to go on.

    Raises:
        UserError: there is no backbone, it does not fit, the layout has no place for it, it does not take images of
            that size, or `out` cannot be a new folder.
    """
    _check(wish)
    source, facts = _found(wish, say)
    check_images(source.backbone, source.size, "--size")
    target = TARGETS[wish.to]
    say(f"Writing {target.what} …")
    agreed = export_to(target, source, facts, wish.out)
    say(f"Checked: {agreed}")
    say(f"Written: {wish.out} ({', '.join(sorted(path.name for path in wish.out.iterdir()))})")
    lines = usage(source, target).replace('"."  # where this file lies', f'"{wish.out}"')
    say(f"Load it:\n{lines}")
    if wish.to == "timm":
        say(f"Judge it, in a file for `genview evaluate`:\n{_as_backbone(source, wish.out)}")


def _check(wish: Wish) -> None:
    """Refuse what no backbone can be exported to, before one is read."""
    if wish.size is not None and wish.size < 1:
        raise UserError(f"--size is the side of images in pixels, 1 or more, and {wish.size} is none.")
    if file := next((place for place in (wish.out, *wish.out.parents) if place.is_file()), None):
        raise UserError(f"The folder {wish.out} cannot be made: {file} is a file. Name a new folder with --out.")


def _found(wish: Wish, say: Say) -> tuple[Source, Facts]:
    place = wish.place
    if (place / "experiment.yaml").is_file():
        return _of_run(wish, RunFolder(place), RunFolder(place).backbone, say)
    if place.suffix == ".safetensors" and place.with_name("experiment.yaml").is_file():
        return _of_run(wish, RunFolder(place.parent), place, say)
    if (place / "config.json").is_file():
        return _of_folder(wish, say)
    if place.is_file():
        return _of_file(wish, place, place.name, say)
    raise UserError(
        f"{place} is neither a run folder (with experiment.yaml), nor an exported one (with config.json), nor a file "
        "of weights."
    )


def _of_run(wish: Wish, run: RunFolder, weights: Path, say: Say) -> tuple[Source, Facts]:
    if wish.hints != Hints():
        raise UserError("A run knows its backbone: the options that describe a file of others are not for it.")
    experiment = load_experiment(Experiment, run.experiment)
    settings = experiment.training.backbone
    backbone = load(settings, weights).eval()
    say(f"Recognised: a run of genview, {experiment.method.kind} {settings.name}, {weights.name}")
    if wish.data is None:
        say(f"The card calls the images '{name_of(experiment.images)}'; --data NAME calls them otherwise")
    facts = facts_of(experiment, run, wish.data)
    if weights.name != run.backbone.name:
        remark = f"These are the weights of {weights.name}, not those that the training ended with."
        best = [Result(s.name, s.best, protocol=s.protocol) for s in facts.scores if s.best is not None]
        scores = best if weights.name == "best.safetensors" else []
        facts = replace(facts, scores=scores, remarks=(*facts.remarks, remark))
    return Source(settings, backbone, wish.size or experiment.pairs.size), facts


def _of_folder(wish: Wish, say: Say) -> tuple[Source, Facts]:
    """Read a folder of timm's layout of the hub, or one that `genview export` wrote."""
    file, config = wish.place / "model.safetensors", _config(wish.place / "config.json")
    if not file.exists() and (wish.place / "model.onnx").is_file():
        raise UserError(
            f"{wish.place} is an ONNX folder, which cannot be read back into a network of timm's. Export what it was "
            "made from: the run folder, or a folder that was written --to timm."
        )
    known = config.get("genview") or _known_by_timm(config)
    hints = wish.hints
    if known:
        try:
            told = BackboneSettings(
                known["architecture"], known["args"], known["stem_stride"], tuple(known["mean"]), tuple(known["std"])
            )
            size = int(known["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{wish.place / 'config.json'} is damaged ({error!r}).") from error
        hints = replace(
            hints,
            backbone=hints.backbone or told.name,
            args={**told.args, **hints.args},
            stem_stride=hints.stem_stride or told.stem_stride,
            statistics=hints.statistics or (told.mean, told.std),
        )
        wish = replace(wish, size=wish.size or size)
    return _of_file(replace(wish, hints=hints), file, wish.place.resolve().name, say)


def _config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}).") from error


def _known_by_timm(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return what timm's config says, in the words of ours."""
    prepared = config.get("pretrained_cfg")
    if not isinstance(prepared, dict) or "architecture" not in config:
        return None
    return {
        "architecture": config["architecture"],
        "args": config.get("model_args", {}),
        "stem_stride": 4,
        "mean": prepared.get("mean") or IMAGENET_MEAN,
        "std": prepared.get("std") or IMAGENET_STD,
        "size": (prepared.get("input_size") or (3, 224, 224))[-1],
    }


def _of_file(wish: Wish, file: Path, name: str, say: Say) -> tuple[Source, Facts]:
    foreign = read_foreign(file, wish.hints)
    for line in foreign.described():
        say(line)
    backbone = foreign.backbone()
    size = wish.size or (built_for(backbone.net) or (224,))[0]
    return Source(foreign.settings, backbone, size), _foreign_facts(foreign, name, wish.data)


def _foreign_facts(foreign: Foreign, name: str, data: str | None) -> Facts:
    rows: Sequence[tuple[str, str]] = [
        ("origin", f"{name}, imported by `genview export`; who trained it, and its licence, the file does not say"),
        ("images", data or "not known"),
        ("layout", f"{foreign.layout}, {foreign.root}"),
        ("left out", ", ".join(foreign.left_out) or "nothing"),
        *(("taken for granted", sentence.partition(" (--")[0]) for sentence in foreign.assumed),
    ]
    return Facts(f"{foreign.settings.name} of {name}", rows)


def _as_backbone(source: Source, out: Path) -> str:
    settings = source.settings
    content = {
        "name": settings.name,
        "args": dict(settings.args),
        "stem_stride": settings.stem_stride,
        "weights": str(out / "model.safetensors"),
        "mean": list(settings.mean),
        "std": list(settings.std),
    }
    return yaml.safe_dump({"backbone": content}, sort_keys=False, default_flow_style=None, width=110).rstrip()


def arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read 'name=value' as YAML values.

    Raises:
        UserError: one is not written so.
    """
    found = dict[str, Any]()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--arg {text}: write name=value, for example --arg num_heads=12.")
        found[name] = yaml.safe_load(value)
    return found
