"""Planning the views: one pass over the analysis, and the plan is written and never changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from genview.errors import UserError
from genview.generators.conditions import Conditions, read_conditions
from genview.generators.generator import Text
from genview.generators.plan import Columns, Plan, Tell, plan_part
from genview.generators.settings import GenerateSettings
from genview.noise import NoisePolicy
from genview.seeds import seed_of
from genview.store import claim, read_table, write_json, write_table

PART = 16_384
"""About how many views a part of the plan holds: few enough that reading one for a single shard costs little."""
NO_TEXT = Text()


@dataclass(frozen=True)
class Job:
    """What there is to make: the folder of analysed images, and how each of them is to vary.

    `guidance` and `text` are the generator's own, for views whose condition in a file says nothing else.
    """

    analysis: Path
    policy: NoisePolicy
    guidance: float
    seed: int
    text: Text = NO_TEXT


def make_plan(
    job: Job, settings: GenerateSettings, folder: Path, *, identity: Mapping[str, object], tell: Tell
) -> Plan:
    """Write the plan of `settings.draws` views of every analysed image, or return the one that is there.

    One pass over keys and ratios of the analysis; memory does not grow with the number of images. `plan.json`
    is written last: a plan without it was killed half-way or refused, and is written over.

    Raises:
        UserError: the folder holds a plan of other settings or `identity`, there is no analysis or it has grown,
            or the file of conditions cannot be used.
    """
    settings.check()
    conditions = read_conditions(settings.conditions, settings.draws) if settings.conditions else None
    wanted = {**identity, **asdict(settings), "conditions": _digest(settings.conditions)}
    if planned_already(folder, wanted):
        return _same_images(Plan.open(folder), job.analysis)
    images_a_shard = max(1, settings.shard // settings.draws)
    shards_a_part = max(1, PART // (images_a_shard * settings.draws))
    analysed = Analysed(job.analysis, tell)
    matched = 0
    for number, (keys, ratio) in enumerate(_recut(analysed.pieces(), images_a_shard * shards_a_part)):
        columns, found = _planned(job, settings.draws, keys, ratio, conditions)
        matched += found
        write_table(plan_part(folder, number), columns)
    if conditions is not None:
        _tell_unmatched(conditions, matched, analysed)
    plan = Plan(
        folder=folder,
        analysis=Path(os.path.relpath(job.analysis, folder)).as_posix(),
        parts=tuple(analysed.parts),
        draws=settings.draws,
        images_a_shard=images_a_shard,
        shards_a_part=shards_a_part,
        seed=job.seed,
        format=settings.format,
        scores=settings.scores,
        filter=settings.filter,
    )
    return written(plan, wanted)


def planned_already(folder: Path, wanted: Mapping[str, object]) -> bool:
    """Whether there is a whole plan in a folder of views; one that was refused or killed binds the folder to nothing.

    Raises:
        UserError: the folder holds a plan, or views, of other settings than `wanted`.
    """
    there = (folder / "plan" / "plan.json").exists()
    if there or any(folder.glob("part-*")):
        claim(folder / "plan", wanted)
    return there


def written(plan: Plan, wanted: Mapping[str, object]) -> Plan:
    """Write `plan.json`, which marks a plan as whole, and return the plan."""
    place = plan.folder / "plan"
    if not any(plan.folder.glob("part-*")):
        (place / "settings.json").unlink(missing_ok=True)  # of a plan that was never finished
    claim(place, wanted)
    write_json(place / "plan.json", {k: v for k, v in asdict(plan).items() if k != "folder"})
    return plan


class Analysed:
    """Keys and ratios of the analysed images, part by part; `parts` fills with the names and rows of those read.

    Raises:
        UserError: there is no part.
    """

    def __init__(self, folder: Path, tell: Tell) -> None:
        self.paths = sorted(folder.glob("part-*.parquet"))
        self.parts: list[tuple[str, int]] = []
        self.tell = tell
        if not self.paths:
            raise UserError(f"{folder} holds no analysed images: run `genview analyse` first.")

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield keys and ratios of each part."""
        for path in self.paths:
            part = read_table(path, ["key", "ratio"])
            self.parts.append((path.name, len(part["key"])))
            yield part["key"], part["ratio"]
            self.tell("plan", len(self.parts), len(self.paths), "")


def _recut(pieces: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same rows in pieces of `size`, the last one shorter."""
    keys, ratio = np.empty(0, dtype=object), np.empty(0, dtype=np.float32)
    for more_keys, more_ratio in pieces:
        keys, ratio = np.concatenate([keys, more_keys]), np.concatenate([ratio, more_ratio])
        whole = len(keys) // size * size
        for first in range(0, whole, size):
            yield keys[first : first + size], ratio[first : first + size]
        keys, ratio = keys[whole:], ratio[whole:]
    if len(keys):
        yield keys, ratio


def _planned(
    job: Job, draws: int, keys: np.ndarray, ratio: np.ndarray, conditions: Conditions | None
) -> tuple[Columns, int]:
    """Return the planned rows of some images, and how many of these the file of conditions names."""
    names: list[str] = keys.tolist()
    levels = [job.policy.levels_of(names, ratio, draw=draw, seed=job.seed) for draw in range(draws)]
    columns: Columns = {
        "key": np.repeat(keys, draws),
        "draw": np.tile(np.arange(draws, dtype=np.int32), len(keys)),
        "level": np.stack(levels, axis=1).reshape(-1).astype(np.int32),
        "seed": np.array([seed_of(job.seed, key, n, "view") for key in names for n in range(draws)], dtype=np.int64),
        "guidance": np.full(len(keys) * draws, job.guidance, dtype=np.float32),
    }
    return columns, 0 if conditions is None else _apply(conditions, columns, keys, draws, job.text)


def _apply(conditions: Conditions, columns: Columns, keys: np.ndarray, draws: int, text: Text) -> int:
    """Write what the file of conditions asks for over the columns; return how many images it names."""
    if conditions.with_texts:
        for name, default in text._asdict().items():
            columns[name] = np.full(len(keys) * draws, default, dtype=object)
    named = list(conditions.places(keys))
    for image in named:
        for draw in range(draws):
            for name, value in vars(conditions.condition(keys[image], draw)).items():
                if value is not None:
                    columns[name][image * draws + draw] = value
    return len(named)


def _tell_unmatched(conditions: Conditions, matched: int, analysed: Analysed) -> None:
    named = len(conditions.of)
    if named and not matched:
        raise UserError(
            f"None of the {named} keys of {conditions.file} is the key of an analysed image; the first is "
            f"'{next(iter(conditions.of))}'. A key is the image's path relative to the root of the images."
        )
    if matched < named:
        note = f"{named - matched} of {named} keys of {conditions.file} are not among the analysed images"
        analysed.tell("plan", len(analysed.paths), len(analysed.paths), note)


def _same_images(plan: Plan, analysis: Path) -> Plan:
    """Return the plan, unless the analysis has got parts since."""
    grown = {path.name for path in analysis.glob("part-*.parquet")} - {name for name, _ in plan.parts}
    if grown:
        raise UserError(
            f"{analysis} has got {len(grown)} more parts, such as {min(grown)}, since the views were planned. "
            f"Delete {plan.folder} to plan and make them anew."
        )
    return plan


def _digest(file: Path | None) -> str | None:
    return None if file is None else hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
