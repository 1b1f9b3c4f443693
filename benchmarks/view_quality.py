"""Judge a generator: how many views keep their source's class, and how far from the source they stray.

    GENVIEW_DATA=FOLDER python benchmarks/view_quality.py --generator FOLDER --sheet views.png
    GENVIEW_DATA=FOLDER python benchmarks/view_quality.py --presets paper balanced fast draft --policies adaptive drop

The classifier is trained by this program on the real training images (once; it is kept in --cache) and has no part in
the generator. Sources are test images, which neither has seen. Every level is measured on the same sources with the
same seeds, beside three references: the sources themselves, hand-made augmentations of them, and the nearest training
images. With --presets every level is measured at each of them; with --policies so are ways of choosing levels and of
filtering views. So what speed costs in quality stands beside it. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from classifier import QUICK, Labelled, Recipe, Tell, classifier_for
from genview.errors import UserError
from genview.generators import Generator, GeneratorSettings
from genview.images import Archives, batches
from genview.seeds import seed_of
from judge import Judge, Row, Views, look, references, table
from policies import POLICIES, measured, resized

FILES = {
    "cifar10": (("cifar10/train-00.zip", "cifar10/train-01.zip"), "cifar10/test.zip"),
    "imagenette": (("imagenette224/train-00.tar", "imagenette224/train-01.tar"), "imagenette224/val-00.tar"),
}
LEVELS = (0, 100, 200, 300, 400)
QUICK_LEVELS = (0, 200, 400)
KINDS = {kind.kind: kind for kind in get_args(GeneratorSettings)}


@torch.no_grad()
def drawn(generator: Generator, sources: Labelled, level: int, guidance: float, draw: int, tell: Tell) -> Tensor:
    """One uint8 view of each source at `level`, resized to the sources' side; seeds do not depend on the level."""
    side, views = sources.images.shape[-1], []
    for rows in torch.arange(len(sources.keys)).split(64):
        condition = generator.encoder.encode(sources.images[rows] / 255).embedding
        seeds = [seed_of(0, sources.keys[i], draw, "view_quality") for i in rows.tolist()]
        made = generator.sample(condition, torch.full_like(rows, level), torch.full((len(rows),), guidance), seeds)
        views.append(resized(made, side))
        tell(f"level {level}, draw {draw + 1}", int(rows[-1]) + 1, len(sources.keys))
    return torch.cat(views)


def compare(
    judge: Judge, generator: Generator, levels: Sequence[int], guidance: float, tell: Tell, preset: str = ""
) -> tuple[list[Row], dict[str, Tensor]]:
    """Measure every level; return rows and views by name."""
    rows, shown = [], {}
    # What is to be compiled should be so before it is timed.
    drawn(generator, judge.sources.first(64), levels[0], guidance, 0, tell)
    for level in levels:
        name, start = f"{preset} {level}" if preset else f"level {level}", time.perf_counter()
        shown[name] = drawn(generator, judge.sources, level, guidance, 0, tell)
        rate = len(shown[name]) / (time.perf_counter() - start)
        again = drawn(generator, judge.few, level, guidance, 1, tell)
        rows.append(judge.row(name, Views.all(shown[name]), Views.all(again), rate))
    return rows, shown


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
    known.add_argument("--kind", default="embedded", choices=sorted(KINDS), help="of generator")
    known.add_argument("--generator", default="", help="weights: a folder or id; 'none' for no generator")
    known.add_argument("--data", default="cifar10", choices=sorted(FILES))
    known.add_argument("--size", type=int, default=32, help="side in pixels")
    known.add_argument("--count", type=int, default=128 if quick else 1000, help="sources")
    known.add_argument("--steps", type=int, help="of the sampler, where no preset says it")
    known.add_argument("--presets", nargs="+", default=[""], metavar="NAME", help="measure every level with each")
    known.add_argument("--policies", nargs="+", default=[], choices=POLICIES, help="with the first preset, if any")
    known.add_argument("--rejected", type=float, default=0.2, help="share of views that the filters are to reject")
    known.add_argument("--guidance", type=float, help="the generator's own where not given")
    known.add_argument("--levels", type=int, nargs="+", default=QUICK_LEVELS if quick else LEVELS)
    known.add_argument("--quick", action="store_true", help="less of everything, under a minute: a check, no result")
    known.add_argument("--sheet", type=Path, help="write views for looking to this PNG file")
    known.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "genview")
    return known.parse_args(given)


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
        options["size"] = args.size
    chosen: GeneratorSettings = kind(**{**options, **kind.presets.get(preset, {})})
    return chosen


def load(settings: GeneratorSettings) -> Generator:
    """Load a generator where it is fastest."""
    return settings.load("cuda" if torch.cuda.is_available() else "cpu")


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
    recipe = QUICK if args.quick else Recipe()
    train_names, test_name = FILES[args.data]
    settings = {} if args.generator == "none" else {name: settings_of(args, name) for name in args.presets}
    generator = load(next(iter(settings.values()))) if settings else None
    bank = read(train_names, args.size, recipe.images, tell)
    test = read([test_name], args.size, 1000 if args.quick else None, tell)
    net = classifier_for(bank, f"{args.data}-{args.size}px", recipe, args.cache, tell)
    judge = Judge(net, test.first(args.count))
    rows, shown = references(judge, bank.images)
    for preset, chosen in settings.items():
        if preset != args.presets[0] or generator is None:
            generator = load(chosen)  # one at a time: each may fill a GPU
        more, views = compare(judge, generator, args.levels, chosen.guidance, tell, preset)
        rows, shown = rows + more, shown | views
        if args.policies and preset == args.presets[0]:
            more, views = measured(
                judge, generator, args.policies, guidance=chosen.guidance, rejected=args.rejected, tell=tell
            )
            rows, shown = rows + more, shown | views
    right = float((look(net, test.images).classes == test.labels).float().mean())
    print(table(rows))
    print(f"The classifier is right on {right:.3f} of the {len(test.keys)} test images; 'relative' is to that of the")
    print(f"same sources. A share of {args.count} sources is known to ±{0.98 / args.count**0.5:.3f} at worst (95 %).")
    if args.sheet:
        sheet(shown, args.sheet)
    print(json.dumps(summary(args, generator, settings, right, rows)))


def summary(
    args: argparse.Namespace,
    generator: Generator | None,
    settings: Mapping[str, GeneratorSettings],
    right: float,
    rows: Sequence[Row],
) -> dict[str, object]:
    """Return what the last line says; `settings` has those of every preset, or of "" without."""
    return {
        "benchmark": "view_quality",
        "generator": generator and generator.name,
        **{name: getattr(args, name) for name in ("data", "size", "count", "policies", "rejected", "quick")},
        "settings": {preset: asdict(chosen) for preset, chosen in settings.items()},
        "classifier": right,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
