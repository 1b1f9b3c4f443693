"""The analyse stage: one pass of the generator's encoder gives foreground ratio and condition of every image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genview.encoders import Encoded, FrozenEncoder
from genview.errors import UserError
from genview.foreground.direction import Direction, ScoreHistogram, TokenMoments
from genview.foreground.masks import foreground_ratio
from genview.foreground.sign import CentrePrior
from genview.images import ImageSource, batches
from genview.images.batches import Unreadable
from genview.seeds import seed_of
from genview.store import claim, read_table, sweep, write_arrays, write_json, write_table
from genview.store.table import Column

Tell = Callable[[str, int, int, str], None]
EXAMPLES = 24


@dataclass(frozen=True)
class AnalyseSettings:
    """How foreground is measured.

    `sample` images give the direction; `share` of their tokens are to be foreground. `direction` is an .npy file
    to use instead of a fitted one (its threshold is still derived here), `sign` '+' or '-' overrules the rule that
    decides which side is foreground. A part holds `part` images.
    """

    sample: int = 10_000
    share: float = 0.4
    direction: Path | None = None
    sign: Literal["auto", "+", "-"] = "auto"
    part: int = 1024
    batch: int = 64
    workers: int = 0


@dataclass(frozen=True)
class Analysis:
    """Reads an analysis folder."""

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Threshold, share, sign and its evidence, grid, encoder.

        Raises:
            UserError: the stage has not run.
        """
        path = self.folder / "summary.json"
        if not path.exists():
            raise UserError(f"{self.folder} holds no analysis: run `genview analyse` first.")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def check(self) -> None:
        """Check that the stage has come to its end.

        Raises:
            UserError: it has not.
        """
        settings = self.folder / "settings.json"
        claimed = json.loads(settings.read_text()) if settings.exists() else {"images_found": 1, "part": 1}
        wanted, found = -(-claimed["images_found"] // claimed["part"]), len(list(self.folder.glob("part-*.parquet")))
        if found < wanted:
            raise UserError(
                f"{self.folder} holds {found} of {wanted} parts of the analysis: run `genview analyse` first."
            )

    def direction(self) -> Direction:
        """Direction, pointing to the foreground."""
        return Direction.load(self.folder / "direction.safetensors")

    def rows(self, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Columns key, ratio, embedding and map (or those named) of every image that could be read.

        A map is what its scores are above the threshold, row by row of the grid that the summary names.
        """
        return read_table(sorted(self.folder.glob("part-*.parquet")), columns)


class Seen(NamedTuple):
    """A batch: indices of its images, the images B×3×S×S, and what the encoder gave."""

    indices: list[int]
    images: Tensor
    encoded: Encoded


@dataclass(frozen=True)
class Looking:
    """A source seen through an encoder: what every pass of the stage shares."""

    source: ImageSource
    encoder: FrozenEncoder
    settings: AnalyseSettings
    device: str
    tell: Tell
    unreadable: Unreadable

    def encode(self, what: str, indices: Sequence[int], of: int | None = None) -> Iterator[Seen]:
        """Look at the images `indices`, telling the progress as `what`; `of` images where these are part of more."""
        settings, done = self.settings, indices[0] if of else 0
        for found in batches(
            self.source,
            size=self.encoder.size,
            batch=settings.batch,
            workers=settings.workers,
            indices=indices,
            unreadable=self.unreadable,
        ):
            yield Seen(found.indices.tolist(), found.images, self.encoder.encode(found.images.to(self.device)))
            done += len(found.indices)
            self.tell(what, done, of or len(indices), "")


def analyse(looking: Looking, folder: Path, *, seed: int, identity: Mapping[str, object]) -> Analysis:
    """Fit the direction and measure every image, continuing with the parts that are missing.

    Writes `direction.safetensors`, `summary.json`, `part-NNNNN.parquet` (key, ratio; embedding and map in half
    precision) and `examples.npz` for the page. No token is written; memory does not depend on the number of images.
    The same in pieces, for launchers: `begin_analysis`, `analyse_part` for each of `parts_of`, `keep_examples`.

    Raises:
        UserError: the folder holds the analysis of other settings, seed or `identity`, or no image can be read.
    """
    analysis = begin_analysis(looking, folder, seed=seed, identity=identity)
    for number in parts_of(looking.source, looking.settings):
        if not part_of(folder, number).exists():
            analyse_part(looking, analysis, number)
    keep_examples(looking, analysis)
    return analysis


def begin_analysis(looking: Looking, folder: Path, *, seed: int, identity: Mapping[str, object]) -> Analysis:
    """Claim the folder and fit the direction, unless it is there.

    Raises:
        UserError: the folder holds the analysis of other settings, seed or `identity`, or no image can be read.
    """
    settings = looking.settings
    chosen = {k: v for k, v in asdict(settings).items() if k not in ("batch", "workers")}
    direction_file = {"direction": str(settings.direction) if settings.direction else None}
    claim(folder, {**identity, **chosen, **direction_file, "seed": seed, "images_found": len(looking.source)})
    if not (folder / "summary.json").exists():
        fit_direction(looking, folder, seed=seed)
    return Analysis(folder)


def parts_of(source: ImageSource, settings: AnalyseSettings) -> range:
    """Numbers of the parts that the images of a source are analysed in."""
    return range(-(-len(source) // settings.part))


def part_of(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"part-{number:05d}.parquet"


def analyse_part(looking: Looking, analysis: Analysis, number: int) -> None:
    """Measure the images of one part."""
    settings, total = looking.settings, len(looking.source)
    indices = range(number * settings.part, min((number + 1) * settings.part, total))
    direction, threshold = analysis.direction(), float(analysis.summary["threshold"])
    keys: list[str] = []
    ratios: list[Tensor] = []
    embeddings: list[Tensor] = []
    maps: list[Tensor] = []
    for found, _, encoded in looking.encode("analyse", indices, of=total):
        keys += [looking.source.key(i) for i in found]
        ratios.append(foreground_ratio(encoded.tokens, direction, threshold).cpu())
        embeddings.append(encoded.embedding.half().cpu())
        maps.append((direction.scores(encoded.tokens) - threshold).half().cpu())
    # A part in which no image could be read has no rows; that it is there says that it is done.
    names: Column = keys or np.array([], dtype=str)
    ratio = torch.cat(ratios).numpy() if keys else np.array([], dtype=np.float32)
    embedding, map_ = (torch.cat(embeddings), torch.cat(maps)) if keys else _of_nothing(looking)
    columns = {"key": names, "ratio": ratio, "embedding": embedding.numpy(), "map": map_.numpy()}
    write_table(part_of(analysis.folder, number), columns)


def _of_nothing(looking: Looking) -> tuple[Tensor, Tensor]:
    """Embeddings 0×E and maps 0×N, for a part without images."""
    size = looking.encoder.size
    encoded = looking.encoder.encode(torch.zeros(1, 3, size, size, device=looking.device))
    return encoded.embedding[:0].half().cpu(), encoded.tokens[:0, :, 0].half().cpu()


def keep_examples(looking: Looking, analysis: Analysis) -> None:
    """Keep some images and maps for the page, unless they are there; clean up after killed runs."""
    if not (analysis.folder / "examples.npz").exists():
        _write_examples(looking, analysis, analysis.folder / "examples.npz")
    sweep(analysis.folder)


def fit_direction(looking: Looking, folder: Path, *, seed: int) -> Analysis:
    """Fit direction, sign and threshold on a random sample of the images; two passes over it.

    Raises:
        UserError: none of the sampled images can be read.
    """
    settings = looking.settings
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "analysis sample"))
    sample = sorted(torch.randperm(len(looking.source), generator=chance)[: settings.sample].tolist())
    moments: TokenMoments | None = None
    for _, _, encoded in looking.encode("direction", sample):
        moments = moments or TokenMoments(encoded.tokens.shape[-1])
        moments.add(encoded.tokens)
    if moments is None:
        raise UserError("None of the sampled images can be read; the quarantine list has the reasons.")
    direction, variance = moments.direction()
    if settings.direction is not None:
        direction = Direction.from_npy(settings.direction, moments.width)
        variance = float(direction.vector.double() @ (moments.scatter / moments.count) @ direction.vector.double())
    centre = float(moments.mean @ direction.vector.double())
    histogram, prior, grid = ScoreHistogram(centre, variance), None, (0, 0)
    for _, _, encoded in looking.encode("threshold", sample):
        scores, grid = direction.scores(encoded.tokens), encoded.grid
        prior = prior or CentrePrior(grid)
        prior.add(scores)
        histogram.add(scores)
    assert prior is not None
    return _decide(direction, histogram, prior, looking, folder, grid)


def _decide(
    direction: Direction,
    histogram: ScoreHistogram,
    prior: CentrePrior,
    looking: Looking,
    folder: Path,
    grid: tuple[int, int],
) -> Analysis:
    """Point the direction to the foreground, take the threshold on that side, and write both."""
    settings = looking.settings
    decided, evidence = prior.decide()
    given = settings.direction is not None and settings.sign == "auto"
    sign = {"auto": 1 if given else decided, "+": 1, "-": -1}[settings.sign]
    threshold = histogram.threshold(settings.share) if sign > 0 else -histogram.threshold(1 - settings.share)
    (direction if sign > 0 else direction.flipped()).save(folder / "direction.safetensors")
    summary = {
        "encoder": looking.encoder.name,
        "explained": direction.explained if direction.explained == direction.explained else None,
        "grid": list(grid),
        "share": settings.share,
        "sign": sign,
        "sign_by_centre": decided,
        "sign_evidence": evidence,
        "threshold": threshold,
    }
    write_json(folder / "summary.json", summary)
    return Analysis(folder)


def _write_examples(looking: Looking, analysis: Analysis, path: Path) -> None:
    """Keep images, score maps less the threshold, and ratios of some images, for the page."""
    total = len(looking.source)
    indices = sorted({round(i * (total - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)})
    direction, threshold = analysis.direction(), float(analysis.summary["threshold"])
    rows: dict[str, list[np.ndarray]] = {"images": [], "maps": [], "ratio": [], "keys": []}
    for found, images, encoded in looking.encode("examples", indices):
        rows["images"].append((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
        rows["maps"].append(_maps(encoded, direction) - threshold)
        rows["ratio"].append(foreground_ratio(encoded.tokens, direction, threshold).cpu().numpy())
        rows["keys"].append(np.array([looking.source.key(i) for i in found]))
    if rows["keys"]:
        write_arrays(path, {name: np.concatenate(parts) for name, parts in rows.items()})


def _maps(encoded: Encoded, direction: Direction) -> np.ndarray:
    scores = direction.scores(encoded.tokens).cpu().numpy()
    return np.asarray(scores.reshape(len(scores), *encoded.grid))
