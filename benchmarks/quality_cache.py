"""How near cached weights of pairs come to the exact ones, what limits them, and what both cost.

    GENVIEW_DATA=FOLDER python benchmarks/quality_cache.py --quick
    GENVIEW_DATA=FOLDER python benchmarks/quality_cache.py --data cifar10 --size 32 --correction 4096
    python benchmarks/quality_cache.py --full   # the cost only: a ConvNeXt-Base of random weights, ResNet-50, 224 px

Pairs are a crop of a real image and one of a view that the embedded generator made of it, cut and coloured as MoCo v2
does. The same crops are shown four times: as they are, recoloured, blurred, and both. The cache is made of the very
pictures that pairs are cut from, as in training; the correction is fitted on crops and colours of its own. The row
'other looks' is the mean quality of the same crops in other colours and blurs: about the most that any estimate could
reach that knows where a view was cut from and does not look at it. Numbers are Spearman's rank correlations with the
exact weights. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from foreground_masks import ranks
from genview.encoders import BackboneSettings, FrozenEncoder, load_frozen
from genview.errors import UserError
from genview.foreground import AnalyseSettings, CentrePrior, Looking, TokenMoments
from genview.generators import EmbeddedSettings
from genview.images import Archives, ImageSource, Subset, batches
from genview.images.origin import Origin
from genview.images.source import silent
from genview.pairs import Look, pixels, recipe
from genview.pairs.augment import UNCHANGED
from genview.quality import CachedQuality, CachedWeigher, Caching, ExactWeigher, cache
from genview.seeds import seed_of
from weighing_costs import cost_at_full_size, costs, seconds, sizes, step_of

FILES = {"imagenette": "imagenette224/val-00.tar", "cifar10": "cifar10/test.zip"}
LEVELS = (0, 100, 200, 300, 400)
KINDS: dict[str, Callable[[Look], Look]] = {
    "crop alone": lambda look: look._replace(factors=UNCHANGED, grey=False, sigma=0.0),
    "colour": lambda look: look._replace(sigma=0.0),
    "blur": lambda look: look._replace(factors=UNCHANGED, grey=False),
    "both": lambda look: look,
}
BATCH = 128


@dataclass(frozen=True)
class Made:
    """One generated view of each image, as a table."""

    source: ImageSource
    images: list[Image.Image]

    @property
    def draws(self) -> np.ndarray:
        """Draw of each row."""
        return np.zeros(len(self.images), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, key: str) -> range:
        """The row of `key`."""
        place = next(i for i in range(len(self.source)) if self.source.key(i) == key)
        return range(place, place + 1)

    def view(self, row: int) -> tuple[Image.Image, int]:
        """The view of a row, and its level."""
        return self.images[row], LEVELS[row % len(LEVELS)]


@dataclass(frozen=True)
class Cuts:
    """Crops for either side of M pairs: of which picture, and the look of each."""

    pictures: list[list[np.ndarray]]
    looks: list[list[Look]]
    origin: Origin
    size: int

    def views(self, side: int, kind: str, other: int = 0) -> Tensor:
        """Show one side, M×3×S×S in [0, 1]; `other` numbers further colours and blurs of the same cuts."""
        shown = []
        for row, (picture, look) in enumerate(zip(self.pictures[side], self.looks[side], strict=True)):
            if other:
                again = recipe("moco_v2").full[0].draw((99, 99), Random(seed_of(other, f"{row} {side}", 0, "look")))
                look = again._replace(box=look.box, flipped=look.flipped)
            view, _ = pixels.cut(picture, look, self.size)
            shown.append(torch.from_numpy(pixels.applied(view, KINDS[kind](look))))
        return torch.stack(shown).float() / 255


def pictures(name: str, count: int, size: int) -> tuple[ImageSource, Made]:
    """Real images, and one generated view of each; levels take turns."""
    root = Path(os.environ.get("GENVIEW_DATA", ""))
    if "GENVIEW_DATA" not in os.environ or not (root / FILES[name]).is_file():
        raise UserError(f"Set GENVIEW_DATA to the folder that holds {FILES[name]}.")
    whole = Archives((str(root / FILES[name]),))
    source = Subset(whole, np.linspace(0, len(whole) - 1, count).astype(int).tolist())
    side = 8 * (size // 8)
    generator = EmbeddedSettings(size=side).load("cpu")
    made: list[Image.Image] = []
    for found in batches(source, size=side, batch=BATCH):
        level = torch.tensor([LEVELS[i % len(LEVELS)] for i in found.indices.tolist()])
        condition = generator.encoder.encode(found.images).embedding
        views = generator.sample(condition, level, torch.ones(len(level)), found.indices.tolist())
        made += [vision.to_pil_image(view) for view in views]
    return source, Made(source, made)


def cut(source: ImageSource, made: Made, times: int, size: int) -> Cuts:
    """Cut `times` pairs of each image as MoCo v2 does; the generated view is on either side with equal chance."""
    chosen: list[list[np.ndarray]] = [[], []]
    looks: list[list[Look]] = [[], []]
    rows = [image for image in range(len(source)) for _ in range(times)]
    draws = [Random(seed_of(0, str(number), 0, "side")).sample([-1, 0], 2) for number in range(len(rows))]
    for number, (image, pair) in enumerate(zip(rows, draws, strict=True)):
        for side, draw in enumerate(pair):
            picture = np.array(source.image(image) if draw < 0 else made.images[image])
            chance = Random(seed_of(0, str(number), side, "look"))
            chosen[side].append(picture)
            looks[side].append(recipe("moco_v2").full[0].draw((picture.shape[1], picture.shape[0]), chance))
    pairs = list(zip(*looks, strict=True))
    box, flipped = ([[getattr(look, name) for look in pair] for pair in pairs] for name in ("box", "flipped"))
    origin = Origin(torch.tensor(rows), torch.tensor(draws), torch.tensor(box), torch.tensor(flipped))
    return Cuts(chosen, looks, origin, size)


def direction_of(source: ImageSource, encoder: FrozenEncoder) -> Tensor:
    """Fit the foreground's direction as `analyse` does."""
    seen = [encoder.encode(found.images) for found in batches(source, size=encoder.size, batch=BATCH)]
    moments, prior = TokenMoments(seen[0].tokens.shape[-1]), CentrePrior(seen[0].grid)
    for encoded in seen:
        moments.add(encoded.tokens)
    direction, _ = moments.direction()
    for encoded in seen:
        prior.add(direction.scores(encoded.tokens))
    return direction.vector if prior.decide()[0] > 0 else -direction.vector


Weigh = ExactWeigher | CachedWeigher


def quality(weigh: Weigh, views: Sequence[Tensor], origin: Origin) -> Tensor:
    """Quality q of M pairs, batch by batch."""
    found = []
    for rows in torch.arange(len(origin.image)).split(BATCH):
        part = weigh([view[rows] for view in views], Origin(*(column[rows] for column in origin)), 0.0)
        found.append(part.foreground - part.background)
    return torch.cat(found)


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation; weights and q have the same ranks."""
    return float(np.corrcoef(ranks(one.numpy()), ranks(other.numpy()))[0, 1])


def variants(chosen: argparse.Namespace) -> dict[str, CachedQuality]:
    """Ways of caching, by name; the first is the one that is judged."""
    base = CachedQuality(components=chosen.components, correction=chosen.correction)
    plain, own = replace(base, correction=0), chosen.encoder_size
    found = {"cached, corrected": base}
    if not chosen.quick:
        found |= {f"not corrected, pictures at {side} px": replace(plain, size=side) for side in (own, 3 * own)}
        found |= {f"not corrected, {k} components": replace(plain, components=k) for k in (8, 128)}
        found |= {"corrected, 8 components": replace(base, components=8)}
        found |= {f"corrected on {chosen.correction // 4} crops": replace(base, correction=chosen.correction // 4)}
    return found


def compare(chosen: argparse.Namespace, folder: Path) -> tuple[dict[str, dict[str, float]], CachedWeigher, Cuts]:
    """Correlations of every way with the exact weights, by kind of view; and the judged cache."""
    source, made = pictures(chosen.data, chosen.images, chosen.size)
    cuts = cut(source, made, chosen.times, chosen.size)
    encoder = load_frozen(chosen.encoder, chosen.encoder_size)
    direction = direction_of(source, encoder)
    views = {kind: [cuts.views(side, kind) for side in (0, 1)] for kind in KINDS}
    exact = {kind: quality(ExactWeigher(encoder, direction), both, cuts.origin) for kind, both in views.items()}
    weighers = {}
    for number, (name, settings) in enumerate(variants(chosen).items()):
        looking = Looking(source, encoder, AnalyseSettings(batch=BATCH), "cpu", silent, lambda *_: None)
        start = time.perf_counter()
        caching = Caching(looking, made, direction, settings, chosen.size)
        weighers[name] = cache(caching, folder / str(number), seed=0, identity={})
        print(f"{name}: made in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    judged = weighers["cached, corrected"]
    weighers["cached, not corrected"] = CachedWeigher(judged.grids, judged.grid, None)
    found = {
        name: {kind: spearman(quality(weigh, views[kind], cuts.origin), exact[kind]) for kind in KINDS}
        for name, weigh in weighers.items()
    }
    others = [
        quality(ExactWeigher(encoder, direction), [cuts.views(side, "both", n) for side in (0, 1)], cuts.origin)
        for n in range(1, chosen.looks + 1)
    ]
    found["other looks, exact"] = {"both": spearman(torch.stack(others).mean(dim=0), exact["both"])}
    return found, judged, cuts


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(FILES), default="imagenette")
    parser.add_argument("--size", type=int, default=64, help="side of the views in pixels")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--times", type=int, default=3, help="pairs of each image")
    parser.add_argument("--looks", type=int, default=8, help="other looks of each pair")
    parser.add_argument("--encoder", default="natural", help="what load_frozen takes")
    parser.add_argument("--encoder-size", type=int, help="side at which it looks at views; --size where left out")
    parser.add_argument("--components", type=int, default=CachedQuality.components)
    parser.add_argument("--correction", type=int, default=CachedQuality.correction)
    parser.add_argument(
        "--full", action="store_true", help="measure the cost at the paper's shapes, and nothing else"
    )
    parser.add_argument("--batch", type=int, help="pairs for the cost; 64, and 8 with --full, where left out")
    parser.add_argument(
        "--quick", action="store_true", help="few images, crops and looks: under a minute on two cores"
    )
    chosen = parser.parse_args(given)
    if chosen.quick:
        chosen.images, chosen.times, chosen.looks = min(chosen.images, 80), 2, 2
        chosen.correction, chosen.batch = min(chosen.correction, 1024), chosen.batch or 32
    chosen.encoder_size = chosen.encoder_size or chosen.size
    return chosen


def main(given: Sequence[str] | None = None) -> int:
    chosen = arguments(given)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = (
                cost_at_full_size(Path(folder), chosen.batch or 8) if chosen.full else measured(chosen, Path(folder))
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found["share_of_step"] = found["cached_seconds"] / found["step_seconds"]
    found["exact_share_of_step"] = found["exact_seconds"] / found["step_seconds"]
    for name, value in found.items():
        print(f"{name:25} {value:10.4f}")
    head = {name: getattr(chosen, name) for name in ("data", "size", "encoder", "encoder_size", "quick", "full")}
    print(json.dumps(head | {name: round(value, 4) for name, value in found.items()}))
    return 0


def measured(chosen: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Print the table of correlations; return the judged one and the costs beside a step of ResNet-18."""
    table, weigh, cuts = compare(chosen, folder)
    print(f"{'Spearman with the exact weights':34}" + "".join(f"{kind:>12}" for kind in KINDS))
    for name, row in table.items():
        print(f"{name:34}" + "".join(f"{row[kind]:12.3f}" if kind in row else f"{'–':>12}" for kind in KINDS))
    rows = torch.arange(chosen.batch or 64) % len(cuts.origin.image)
    views, origin = (
        [cuts.views(side, "both")[rows] for side in (0, 1)],
        Origin(*(part[rows] for part in cuts.origin)),
    )
    encoder = load_frozen(chosen.encoder, chosen.encoder_size)
    exact = ExactWeigher(encoder, torch.ones(encoder.encode(views[0][:1]).tokens.shape[-1]))
    found = {"spearman": table["cached, corrected"]["both"], "ceiling_unseen": table["other looks, exact"]["both"]}
    found |= {"uncorrected": table["cached, not corrected"]["both"]}
    found |= {"uncorrected_crop_alone": table["cached, not corrected"]["crop alone"]}
    found |= costs(weigh, exact, views, origin, 7)
    backbone = BackboneSettings("resnet18", stem_stride=2 if chosen.size <= 64 else 4)
    return found | {"step_seconds": seconds(step_of(backbone, views), 3)} | sizes(weigh)


if __name__ == "__main__":
    sys.exit(main())
