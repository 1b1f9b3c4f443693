"""A study: one experiment varied along named axes, with several seeds, and the runs that this gives."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genview.errors import UserError, nearest
from genview.experiment.load import overridden, parse, read_yaml
from genview.experiment.schema import Experiment
from genview.report import Design, Entry
from genview.store import RunFolder

Overrides = dict[str, Any]
LONGEST = 80
"""Bytes in the name of a variant's folder."""


@dataclass(frozen=True)
class Study:
    """What is varied, and against what it is compared.

    `experiment` is what all runs have in common. `vary` has a mapping for each axis, from the names of its variants
    to what each of them lays over the experiment; every combination is run with every one of `seeds`. `compare` names
    an axis and the variant of it that the others are compared with, at equal seed and equal other axes. Views are
    made with the experiment's own seed, whatever `seeds` are.
    """

    experiment: dict[str, Any]
    vary: dict[str, dict[str, Overrides]]
    compare: dict[str, str]
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class GridRun:
    """A run of a study: a variant of each axis, a seed, and what both make of the experiment.

    `folder` is relative to that of the study.
    """

    variants: tuple[str, ...]
    experiment: Experiment
    folder: Path

    @property
    def name(self) -> str:
        """The run in words."""
        return f"{' / '.join(self.variants)}, seed {self.experiment.seed}"


@dataclass(frozen=True)
class Grid:
    """A study that was checked: its runs, all variants with the first seed, then all with the next."""

    study: Study
    runs: tuple[GridRun, ...]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self.study.vary)

    @property
    def seed_of_views(self) -> int:
        """The experiment's own seed, with which analysis and views are made for all runs."""
        return int(self.study.experiment.get("seed", 0))

    def design(self, out: Path) -> Design:
        """Return what the report needs to know of a study in the folder `out`."""
        ((axis, reference),) = self.study.compare.items()
        entries = [Entry(run.variants, run.experiment.seed, RunFolder(out / run.folder)) for run in self.runs]
        return Design(self.axes, tuple(entries), self.axes.index(axis), reference)


def load_study(file: Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a study, apply 'path=value' overrides such as 'experiment.images.root=PHOTOS', and check every run.

    Raises:
        UserError: the file, the experiment that it names, or one of the variants cannot be used.
    """
    content = read_yaml(file)
    if isinstance(content.get("experiment"), str):
        content["experiment"] = read_yaml(file.parent / content["experiment"])
    content = overridden(content, overrides)
    study = parse(Study, _legible(content, str(file)), str(file), "a study")
    _check(study, str(file))
    return Grid(study, tuple(_runs(study, str(file))))


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid over it: mappings are merged, everything else is replaced.

    A mapping of another `kind` than the one below replaces it whole, as their other keys have nothing in common.
    """
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(below, dict) and isinstance(value, dict) and not _of_another_kind(below, value):
            result[name] = laid_over(below, value)
        else:
            result[name] = value
    return result


def _of_another_kind(below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return "kind" in below and "kind" in over and below["kind"] != over["kind"]


def _runs(study: Study, where: str) -> Iterator[GridRun]:
    """Yield the runs, seed by seed: so there is something to compare before all seeds are through."""
    axes = [_folders(axis, variants) for axis, variants in study.vary.items()]
    experiments = []
    for variants in itertools.product(*study.vary.values()):
        content: dict[str, Any] = dict(study.experiment)
        for axis, name in zip(study.vary.values(), variants, strict=True):
            content = laid_over(content, axis[name])
        experiments.append((variants, parse(Experiment, content, f"{where} with {' / '.join(variants)}")))
    for seed in study.seeds:
        for variants, experiment in experiments:
            folders = [folders[name] for folders, name in zip(axes, variants, strict=True)]
            # The study has its own baselines: one for each run would only cost time.
            seeded = replace(experiment, seed=seed, baseline=False)
            yield GridRun(variants, seeded, Path("runs", *folders, f"seed-{seed}"))


def _legible(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the content with names as texts.

    Raises:
        UserError: what stands in the place of names is none, or not where names belong.
    """
    if "vary" not in content:
        raise UserError(f"{where} is no study, as it has no vary. A single experiment is for `genview run`.")
    vary, compare = content["vary"], content.get("compare")
    if not isinstance(vary, dict) or not all(isinstance(variants, dict) for variants in vary.values()):
        raise UserError(f"{where}: vary needs axes with named variants, as in {{views: {{baseline: …, mine: …}}}}.")
    if not isinstance(compare, dict):
        raise UserError(f"{where}: compare names one axis and one variant of it, as in {{views: baseline}}.")
    if not isinstance(content.get("seeds", []), list):
        raise UserError(f"{where}: seeds is to be a list, as in [0, 1, 2]; given: {content['seeds']}.")
    axes = {axis: _named(variants, f"{where}: vary.{axis}") for axis, variants in vary.items()}
    laid = {axis: {name: {} if over is None else over for name, over in axes[axis].items()} for axis in axes}
    named = {axis: _name(variant, f"{where}: compare") for axis, variant in compare.items()}
    return {**content, "vary": _named(laid, f"{where}: vary"), "compare": _named(named, f"{where}: compare")}


def _named(mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return a mapping with its keys as names.

    Raises:
        UserError: two of them are one name, or see `_name`.
    """
    named: dict[str, Any] = {}
    for key, value in mapping.items():
        name = _name(key, where)
        if name in named:
            raise UserError(f"{where}: '{name}' is given twice.")
        named[name] = value
    return named


def _name(key: object, where: str) -> str:
    """Take numbers for names (gamma: {0.5: …}), and blanks in names for one space.

    Raises:
        UserError: it is neither text nor a number.
    """
    if isinstance(key, bool) or not isinstance(key, int | float | str):
        raise UserError(f"{where}: YAML reads this name as {key}. Put it in quotes.")
    return " ".join(str(key).split())


def _folders(axis: str, variants: Mapping[str, object]) -> dict[str, str]:
    """Return a folder name for each variant: letters, digits and '_', everything else a dash.

    Raises:
        UserError: nothing is left of a name, it is too long, or two would share a folder, as 'A' and 'a' might.
    """
    folders: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in variants:
        folder = re.sub(r"\W+", "-", unicodedata.normalize("NFC", name)).strip("-")
        if not folder or len(folder.encode()) > LONGEST:
            wrong = f"is longer than {LONGEST} bytes" if folder else "has neither letter nor digit"
            raise UserError(f"vary.{axis}: '{name}' names a folder and {wrong}. Choose another name.")
        if (other := taken.setdefault(folder.casefold(), name)) != name:
            raise UserError(f"vary.{axis}: '{other}' and '{name}' would share the folder {folder}. Rename one.")
        folders[name] = folder
    return folders


def _check(study: Study, where: str) -> None:
    """Check what belongs together.

    Raises:
        UserError: something is empty, given twice, in the wrong place, or not there to be compared with.
    """
    if not study.vary or not all(study.vary.values()):
        raise UserError(f"{where}: vary needs an axis at least, and each axis a variant at least.")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"{where}: seeds are to be different numbers, and one at least; given: {[*study.seeds]}.")
    for axis, variants in study.vary.items():
        for name, over in variants.items():
            for key in {"seed", "baseline"} & over.keys():
                instead = "list it under seeds" if key == "seed" else "a variant is the baseline here"
                raise UserError(f"{where}: vary.{axis}.{name} sets {key}: {instead}.")
    if len(study.compare) != 1:
        raise UserError(f"{where}: compare names one axis and one variant of it, as in {{views: baseline}}.")
    ((axis, reference),) = study.compare.items()
    known = study.vary.get(axis, study.vary)
    missed = axis if axis not in study.vary else reference
    if missed not in known:
        raise UserError(f"{where}: compare: vary has no '{missed}' but {', '.join(known)}.{nearest(missed, known)}")
