"""Judge a generator: how many views keep their source's class, and how far from the source they stray.

    GENVIEW_DATA=FOLDER python benchmarks/view_quality.py --generator FOLDER --sheet views.png

The classifier is trained by this program on the real training images (once; it is kept in --cache) and has no part in
the generator. Sources are test images, which neither has seen. Every level is measured on the same sources with the
same seeds, beside three references: the sources themselves, hand-made augmentations of them, and the nearest training
images. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from classifier import QUICK, Classifier, Labelled, Recipe, Tell, classifier_for
from genview.errors import UserError
from genview.generators import EmbeddedSettings, Generator
from genview.images import Archives, batches
from genview.pairs.augment import ViewRecipe
from genview.seeds import seed_of

FILES = {
    "cifar10": (("cifar10/train-00.zip", "cifar10/train-01.zip"), "cifar10/test.zip"),
    "imagenette": (("imagenette224/train-00.tar", "imagenette224/train-01.tar"), "imagenette224/val-00.tar"),
}
LEVELS = (0, 100, 200, 300, 400)
QUICK_LEVELS = (0, 200, 400)
HAND_MADE = ViewRecipe(blur=0.0)
"""The augmentation of MoCo v2, without its blur, as is usual at 32 pixels."""


class Seen(NamedTuple):
    """What the classifier makes of N images: classes N, and the features N×D before its last layer."""

    classes: Tensor
    features: Tensor


@dataclass(frozen=True)
class Row:
    """One line of the table; shares and distances are means over the sources, distances between pixels in [0, 1]."""

    name: str
    accuracy: float
    relative: float
    agreement: float
    rmse: float
    feature_distance: float
    between_draws: float | None
    images_per_second: float | None


@torch.no_grad()
def look(net: Classifier, images: Tensor) -> Seen:
    """Classify uint8 images N×3×S×S."""
    features = torch.cat([net.features(part / 255) for part in images.split(250)])
    return Seen(net.head(features).argmax(dim=1), features)


class Judge:
    """Compares views with their sources, which are real images that the classifier has not been trained on."""

    def __init__(self, net: Classifier, sources: Labelled) -> None:
        self.net, self.sources = net, sources
        self.few = sources.first(max(1, len(sources.keys) // 4))
        self.real = look(net, sources.images)
        self.accuracy = float((self.real.classes == sources.labels).float().mean())

    def row(self, name: str, views: Tensor, again: Tensor | None = None, rate: float | None = None) -> Row:
        """Measure one uint8 view of each source; `again` holds second draws for the first few of them."""
        seen = look(self.net, views)
        right = float((seen.classes == self.sources.labels).float().mean())
        cosine = F.cosine_similarity(seen.features, self.real.features)
        return Row(
            name,
            accuracy=right,
            relative=right / max(self.accuracy, 1e-9),
            agreement=float((seen.classes == self.real.classes).float().mean()),
            rmse=float(rmse(views, self.sources.images).mean()),
            feature_distance=float((1 - cosine).mean()),
            between_draws=None if again is None else float(rmse(views[: len(again)], again).mean()),
            images_per_second=rate,
        )


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference of uint8 images N×3×S×S, in units of their range: N values in [0, 1]."""
    return ((a.float() - b.float()) / 255).square().flatten(1).mean(dim=1).sqrt()


def nearest(sources: Tensor, bank: Tensor) -> Tensor:
    """For each uint8 source the image of `bank` that is nearest in pixels."""
    flat = bank.flatten(1) / 255
    return bank[torch.cat([torch.cdist(s.flatten(1) / 255, flat).argmin(dim=1) for s in sources.split(100)])]


def hand_made(sources: Tensor) -> Tensor:
    """One hand-made augmentation of each uint8 source."""
    transform = HAND_MADE.transform(sources.shape[-1])
    return torch.stack([transform(to_pil_image(image)) for image in sources])


@torch.no_grad()
def drawn(generator: Generator, sources: Labelled, level: int, guidance: float, draw: int, tell: Tell) -> Tensor:
    """One uint8 view of each source at `level`, resized to the sources' side; seeds do not depend on the level."""
    side, views = sources.images.shape[-1], []
    for rows in torch.arange(len(sources.keys)).split(64):
        condition = generator.encoder.encode(sources.images[rows] / 255).embedding
        seeds = [seed_of(0, sources.keys[i], draw, "view_quality") for i in rows.tolist()]
        made = generator.sample(condition, torch.full_like(rows, level), torch.full((len(rows),), guidance), seeds)
        if made.shape[-1] != side:
            smaller = F.interpolate(made.float(), (side, side), mode="bicubic", antialias=True)
            made = smaller.round().clamp(0, 255).byte()
        views.append(made)
        tell(f"level {level}, draw {draw + 1}", int(rows[-1]) + 1, len(sources.keys))
    return torch.cat(views)


def references(judge: Judge, bank: Tensor) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure what the views are to be compared with; return rows and images by name."""
    real = judge.sources.images
    torch.manual_seed(0)
    shown = {"source": real, "hand-made": hand_made(real), "nearest": nearest(real, bank)}
    again = {"hand-made": hand_made(judge.few.images)}
    return [judge.row(name, images, again.get(name)) for name, images in shown.items()], shown


def compare(
    judge: Judge, generator: Generator, levels: Sequence[int], guidance: float, tell: Tell
) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure every level; return rows and views by name."""
    rows, shown = [], {}
    for level in levels:
        name, start = f"level {level}", time.perf_counter()
        shown[name] = drawn(generator, judge.sources, level, guidance, 0, tell)
        rate = len(shown[name]) / (time.perf_counter() - start)
        again = drawn(generator, judge.few, level, guidance, 1, tell)
        rows.append(judge.row(name, shown[name], again, rate))
    return rows, shown


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out for reading; a dash stands for what has no meaning there."""
    heads = ("class kept", "relative", "same answer", "RMSE", "feature distance", "draws apart", "images/s")
    lines = ["".join((f"{'':<12}", *(f"{head:>18}" for head in heads)))]
    for row in rows:
        values = [v for v in asdict(row).values() if not isinstance(v, str)]
        lines.append("".join((f"{row.name:<12}", *(f"{'–' if v is None else f'{v:.3f}':>18}" for v in values))))
    return "\n".join(lines)


def sheet(shown: Mapping[str, Tensor], path: Path, count: int = 16, side: int = 96) -> None:
    """Write a PNG with one source a row, and its views beside it."""
    paper = Image.new("RGB", (side * len(shown), side * count + 16), "white")
    for column, (name, images) in enumerate(shown.items()):
        ImageDraw.Draw(paper).text((column * side + 4, 2), name, fill="black")
        for row, image in enumerate(images[:count]):
            large = to_pil_image(image).resize((side, side), Image.Resampling.NEAREST)
            paper.paste(large, (column * side, row * side + 16))
    paper.save(path)


class Progress:
    """Tells on stderr how far something is and how long it will take."""

    def __init__(self) -> None:
        self.what, self.start, self.shown = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show at most one line a second, and the last of each."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.start = what, now
        if done == total or now - self.shown > 1:
            left = (now - self.start) * (total - done) / done
            end = "\n" if done == total else ""
            print(f"\r{what}: {done}/{total}, {left:.0f} s left   ", end=end, file=sys.stderr, flush=True)
            self.shown = now


def read(names: Sequence[str], size: int, count: int | None, tell: Tell) -> Labelled:
    """Read the first `count` images (their order is random already) of archives below $GENVIEW_DATA.

    Raises:
        UserError: there is no such folder, or an archive is missing.
    """
    root = Path(os.environ.get("GENVIEW_DATA", ""))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"The real images {', '.join(missing)} are not in '{root}'. Set GENVIEW_DATA to their folder."
        )
    source = Archives(tuple(str(root / name) for name in names))
    chosen, parts = range(len(source))[:count], []
    for found in batches(source, size=size, batch=250, indices=chosen):
        parts.append((found.images * 255).round().byte())
        tell(f"reading {names[0]}", int(found.indices[-1]) + 1, len(chosen))
    labels = torch.tensor([source.label(i) or 0 for i in chosen])
    return Labelled([source.key(i) for i in chosen], torch.cat(parts), labels)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what --quick shortens can still be given."""
    given = list(sys.argv[1:] if argv is None else argv)
    quick = "--quick" in given
    known = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known.add_argument("--generator", default="embedded", help="--out folder of fit-generator, 'embedded', or 'none'")
    known.add_argument("--data", default="cifar10", choices=sorted(FILES))
    known.add_argument("--size", type=int, default=32, help="side in pixels")
    known.add_argument("--count", type=int, default=128 if quick else 1000, help="sources")
    known.add_argument("--steps", type=int, default=4 if quick else EmbeddedSettings.steps, help="of the sampler")
    known.add_argument("--guidance", type=float, default=EmbeddedSettings.guidance)
    known.add_argument("--levels", type=int, nargs="+", default=QUICK_LEVELS if quick else LEVELS)
    known.add_argument("--quick", action="store_true", help="less of everything, under a minute: a check, no result")
    known.add_argument("--sheet", type=Path, help="write views for looking to this PNG file")
    known.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "genview")
    return known.parse_args(given)


def load(args: argparse.Namespace) -> Generator | None:
    """Load the generator that the command line names; None for 'none', which measures the references alone."""
    if args.generator == "none":
        return None
    weights = "natural" if args.generator == "embedded" else args.generator
    settings = EmbeddedSettings(weights=weights, size=args.size, steps=args.steps)
    return settings.load("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 2 where data or weights are missing."""
    args, tell = arguments(argv), Progress()
    recipe = QUICK if args.quick else Recipe()
    train_names, test_name = FILES[args.data]
    try:
        generator = load(args)
        bank = read(train_names, args.size, recipe.images, tell)
        test = read([test_name], args.size, 1000 if args.quick else None, tell)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    net = classifier_for(bank, f"{args.data}-{args.size}px", recipe, args.cache, tell)
    judge = Judge(net, test.first(args.count))
    rows, shown = references(judge, bank.images)
    if generator:
        more, views = compare(judge, generator, args.levels, args.guidance, tell)
        rows, shown = rows + more, shown | views
    right = float((look(net, test.images).classes == test.labels).float().mean())
    print(table(rows))
    print(
        f"The classifier is right on {right:.3f} of the {len(test.keys)} test images; 'relative' is to the first row."
    )
    print(f"A share of {args.count} sources is known to ±{0.98 / args.count**0.5:.3f} at worst (95 %).")
    if args.sheet:
        sheet(shown, args.sheet)
    print(json.dumps(summary(args, generator, right, rows)))
    return 0


def summary(
    args: argparse.Namespace, generator: Generator | None, right: float, rows: Sequence[Row]
) -> dict[str, object]:
    """Return what the last line says."""
    named = {name: getattr(args, name) for name in ("data", "size", "count", "steps", "guidance", "quick")}
    measured = {"classifier": right, "rows": [asdict(row) for row in rows]}
    return {"benchmark": "view_quality", "generator": generator and generator.name, **named, **measured}


if __name__ == "__main__":
    sys.exit(main())
