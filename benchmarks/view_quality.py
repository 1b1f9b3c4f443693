"""Judge a generator: how many views keep their source's class, how far they stray, and whether they are new images.

    GENVIEW_DATA=FOLDER python benchmarks/view_quality.py --generator FOLDER --sheet views.png
    GENVIEW_DATA=FOLDER python benchmarks/view_quality.py --presets paper balanced fast draft --policies adaptive drop

The classifier is trained by this program on the real training images (once; it is kept in --cache) and has no part in
the generator. Sources are test images, which neither has seen; they are at most half of these, as views are compared
with the others, too. Every level is measured on the same sources with the same seeds, beside references: the sources
themselves, hand-made augmentations of them, the nearest training images, and, for the embedded generator, image-to-
image with the same network. That begins with the noised source instead of with noise, at the strength that the
package's own image-to-image has at that level; 'img2img' knows nothing else of the source, 'begun' the code, too.
With --made-at the generator is shown larger sources, and its views are made smaller before they are judged.
With --presets every level is measured at each of them; with --policies so are ways of choosing levels and of
filtering views. So what speed costs in quality stands beside it. What levels keep inside and outside the foreground
is measured on photographs with masks, where GENVIEW_DATA has coco256_det320. The last line printed is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import fill
from typing import NamedTuple, get_args

import torch

from classifier import QUICK, Labelled, Recipe, Tell, classifier_for
from columns import Row, meanings, table
from drawing import Compared, compare, fastest, sheet
from from_source import FromSource
from genview.errors import UserError
from genview.generators import EmbeddedSettings, Generator, GeneratorSettings
from genview.images import Archives, batches
from in_masks import Photographs, photographs
from judge import Judge, references
from policies import POLICIES, measured

FILES = {
    "cifar10": (("cifar10/train-00.zip", "cifar10/train-01.zip"), "cifar10/test.zip"),
    "imagenette": (("imagenette224/train-00.tar", "imagenette224/train-01.tar"), "imagenette224/val-00.tar"),
}
LEVELS = (0, 100, 200, 300, 400)
QUICK_LEVELS = (0, 200, 400)
Help = argparse.RawDescriptionHelpFormatter
KINDS = {kind.kind: kind for kind in get_args(GeneratorSettings)}


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


def data() -> Path:
    """Return the folder of real images."""
    return Path(os.environ.get("GENVIEW_DATA", ""))


def read(names: Sequence[str], size: int, count: int | None, tell: Tell) -> Labelled:
    """Read the first `count` images (their order is random already) of archives below $GENVIEW_DATA.

    Raises:
        UserError: there is no such folder, or an archive is missing.
    """
    root = data()
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
    known = argparse.ArgumentParser(description=__doc__, epilog=meanings(), formatter_class=Help)
    known.add_argument("--kind", default="embedded", choices=sorted(KINDS), help="of generator")
    known.add_argument("--generator", default="", help="weights: a folder or id; 'none' for no generator")
    known.add_argument("--data", default="cifar10", choices=sorted(FILES))
    known.add_argument("--size", type=int, default=32, help="side in pixels")
    known.add_argument(
        "--made-at", type=int, help="side of the generator's images, where they are larger than --size"
    )
    known.add_argument("--count", type=int, help="sources; 1000 where not given, or as many as there are")
    known.add_argument("--steps", type=int, help="of the sampler, where no preset says it")
    known.add_argument("--presets", nargs="+", default=[""], metavar="NAME", help="measure every level with each")
    known.add_argument("--policies", nargs="+", default=[], choices=POLICIES, help="with the first preset, if any")
    known.add_argument("--rejected", type=float, default=0.2, help="share of views that the filters are to reject")
    known.add_argument("--guidance", type=float, help="the generator's own where not given")
    known.add_argument("--levels", type=int, nargs="+", default=QUICK_LEVELS if quick else LEVELS)
    known.add_argument("--quick", action="store_true", help="less of everything, under a minute: a check, no result")
    known.add_argument("--sheet", type=Path, help="write views for looking to this PNG file")
    known.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "genview")
    args = known.parse_args(given)
    if args.made_at and args.policies:
        known.error("--policies are measured on sources of --size: leave --made-at out.")
    return args


def settings_of(args: argparse.Namespace, preset: str) -> GeneratorSettings:
    """Return the generator that the command line names, at a preset or ("") with its own steps.

    Raises:
        UserError: it has no such preset.
    """
    kind = KINDS[args.kind]
    if preset and preset not in kind.presets:
        raise UserError(f"There is no preset '{preset}' of {args.kind} but {', '.join(kind.presets)}.")
    given = {"weights": args.generator, "steps": args.steps, "guidance": args.guidance}
    options = {name: value for name, value in given.items() if value not in (None, "")}
    if args.kind == "embedded":
        options["size"] = args.made_at or args.size
    chosen: GeneratorSettings = kind(**{**options, **kind.presets.get(preset, {})})
    return chosen


def load(settings: GeneratorSettings) -> Generator:
    """Load a generator where it is fastest."""
    return settings.load(fastest())


def baselines(settings: GeneratorSettings) -> Iterator[tuple[str, Generator]]:
    """Load generators that the same network makes, by name, where this benchmark knows how."""
    if isinstance(settings, EmbeddedSettings):
        for name, told in (("img2img", False), ("begun", True)):
            yield name, FromSource(settings, told=told).to(fastest())


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 2 where data, weights or presets are missing."""
    try:
        run(arguments(argv), Progress())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, tell: Tell) -> None:
    """Measure and print; nothing is trained before data and weights have been found.

    Raises:
        UserError: they have not.
    """
    settings = {} if args.generator == "none" else {name: settings_of(args, name) for name in args.presets}
    generator = load(next(iter(settings.values()))) if settings else None
    judge, photos = prepared(args, tell)
    larger = enlarged(args, judge) if args.made_at else None
    found = [Compared(*references(judge))]
    for preset, chosen in settings.items():
        if preset != args.presets[0] or generator is None:
            generator = load(chosen)  # one at a time: each may fill a GPU
        found.append(compare(judge, photos, generator, args.levels, chosen.guidance, preset or "level", larger))
        if preset == args.presets[0] and larger is None:
            found.extend(besides(args, judge, photos, generator, chosen))
    rows = [row for part in found for row in part.rows]
    print(table(rows))
    print(notes(judge, photos, rows[0]))
    if args.sheet:
        sheet({name: images for part in found for name, images in part.shown.items()}, args.sheet)
    asked = {name: getattr(args, name) for name in ("data", "size", "made_at", "policies", "rejected", "quick")}
    made = {"generator": generator and generator.name, "settings": {name: asdict(s) for name, s in settings.items()}}
    print(json.dumps({"benchmark": "view_quality", **asked, **made, **summary(judge, photos, found)}))


def prepared(args: argparse.Namespace, tell: Tell) -> tuple[Judge, Photographs | None]:
    """Read images and train the classifier; return what judges.

    Raises:
        UserError: there are no images.
    """
    much, (train_names, test_name) = extent(args), FILES[args.data]
    bank = read(train_names, args.size, much.recipe.images, tell)
    test = read([test_name], args.size, much.test, tell)
    net = classifier_for(bank, f"{args.data}-{args.size}px", much.recipe, args.cache, tell)
    count = min(much.sources, len(test.keys) // 2)
    judge = Judge(net, test.first(count), test.part(count), bank.images, tell)
    if args.made_at:  # photographs with masks are read at the side of the judge alone
        return judge, None
    return judge, photographs(net, data() / "coco256_det320", args.size, much.photographs, tell)


def enlarged(args: argparse.Namespace, judge: Judge) -> Labelled:
    """Read the sources again, at the side of the generator."""
    return read([FILES[args.data][1]], args.made_at, len(judge.sources.keys), judge.tell)


class Extent(NamedTuple):
    """How much is done: recipe of the classifier, and numbers of images, all where None."""

    recipe: Recipe
    test: int | None
    sources: int
    photographs: int | None


def extent(args: argparse.Namespace) -> Extent:
    """Return how much is asked for."""
    if not args.quick:
        return Extent(Recipe(), None, args.count or 1000, None)
    share = min(1.0, 32 / args.size)  # larger images take longer
    recipe = replace(QUICK, samples=round(QUICK.samples * share**2))
    return Extent(recipe, 1000, args.count or round(128 * share), round(50 * share))


def besides(
    args: argparse.Namespace,
    judge: Judge,
    photos: Photographs | None,
    generator: Generator,
    settings: GeneratorSettings,
) -> Iterator[Compared]:
    """Measure what belongs to the first preset alone: the same network begun otherwise, and the policies."""
    for name, made in baselines(settings):
        yield compare(judge, photos, made, args.levels, 1.0, name)
    if args.policies:
        options = {"guidance": settings.guidance, "rejected": args.rejected, "tell": judge.tell}
        yield Compared(*measured(judge, generator, args.policies, **options))


def notes(judge: Judge, photos: Photographs | None, real: Row) -> str:
    """Say how far the numbers can be trusted; `real` is the row of the sources."""
    count, rest = len(judge.sources.keys), len(judge.rest.keys)
    said = (
        f"The classifier is right on {judge.right:.3f} of {count + rest} test images; 'relative' is to that of the "
        f"same sources. A share of {count} sources is known to ±{0.98 / count**0.5:.3f} at worst (95 %). Fréchet "
        f"distances are from the {rest} test images that are no sources; as many real images as there are views "
        f"have {real.frechet:.2f}. "
    )
    if photos is None:
        return fill(
            said + "Inside and outside were not measured: there is no coco256_det320, or --made-at was given.", 118
        )
    others, repainted = photos.limits().values()
    said += (
        f"Two different ones of {len(photos.images.keys)} photographs with masks are alike by {others.inside:.3f} "
        f"inside and {others.outside:.3f} outside; with another background, 'inside − outside' is "
        f"{repainted.difference:.3f}."
    )
    return fill(said, 118)


def summary(judge: Judge, photos: Photographs | None, found: Sequence[Compared]) -> dict[str, object]:
    """Return what the last line says of what was measured."""
    return {
        "count": len(judge.sources.keys),
        "others": len(judge.rest.keys),
        "classifier": judge.right,
        "photographs": photos and len(photos.images.keys),
        "limits": photos and {name: limit._asdict() for name, limit in photos.limits().items()},
        "encoded_per_second": {part.name: part.encoded_per_second for part in found if part.encoded_per_second},
        "rows": [asdict(row) for part in found for row in part.rows],
    }


if __name__ == "__main__":
    sys.exit(main())
