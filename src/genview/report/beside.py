"""The page of several runs side by side: scores, curves, and the settings that differ."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genview.report import figures
from genview.report.collect import Result, results, series, statuses
from genview.report.look import framed
from genview.report.section import Section, chart, contents, missing
from genview.report.words import label, percent, points, with_protocols
from genview.store import Measure, RunFolder, write_bytes

CURVES = (
    ("train/loss", "Training loss", "losses with and without weights are not on one scale", False),
    ("online/knn/", "kNN during training", "on held-out training images", True),
    ("online/linear/", "Linear probe during training", "on held-out training images", True),
    ("train/feature_std", "Collapse monitor", "spread of features: 1 is even, 0 collapsed", False),
    ("train/rankme", "Effective rank", "of the features: how many directions they use", False),
    ("quality/weight_std", "Spread of weights", "0: all pairs count alike", False),
)
UNNAMED = "–"


@dataclass(frozen=True)
class Compared:
    """A run and its resolved experiment as plain values."""

    run: RunFolder
    settings: dict[str, Any]


def write_comparison(runs: Sequence[Compared], out: Path) -> Path:
    """Write a page that shows runs side by side, in the given order, to `out`; return it.

    Raises:
        UserError: a file of a run is damaged, or the disk is full.
    """
    names = named([compared.run.root for compared in runs])
    measures = [compared.run.measures() for compared in runs]
    sections = [
        _scores(names, [results(compared.run) for compared in runs]),
        _curves(names, measures),
        _settings(names, [compared.settings for compared in runs]),
        _progress(names, [compared.run for compared in runs], measures),
    ]
    header = (
        f'<p class="date">genview comparison</p><h1>{html.escape(out.stem)}</h1>'
        f'<p class="lead">{len(runs)} runs side by side. Differences are to the first, '
        f"{html.escape(names[0])}.</p>{contents(sections)}"
    )
    page = framed(f"{', '.join(names)} · genview", header, sections)
    write_bytes(out, page.encode("utf-8", "replace"))
    return out


def named(roots: Sequence[Path]) -> list[str]:
    """Return for each folder the last parts of its path, as many as tell all of them apart."""
    parts = [root.resolve().parts for root in roots]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _scores(names: Sequence[str], found: Sequence[Sequence[Result]]) -> Section:
    title = "Scores"
    reading = (
        "Final scores of each run's last backbone, and of the best where one was kept; below them in points how far "
        "each lies from the first run's. A small difference may be chance, and only numbers of one protocol compare."
    )
    values = [dict(_named_scores(run)) for run in found]
    rows = dict.fromkeys(row for own in values for row in own)
    if not rows:
        return Section("scores", title, reading, missing("evaluate", " (it needs labelled images)"))
    lines = [[_head(*row), *_line([own.get(row) for own in values])] for row in rows]
    return Section("scores", title, reading, _table(["measure", *map(html.escape, names)], lines, "scores"))


def _named_scores(found: Sequence[Result]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Yield ((measure, protocol, which backbone), score)."""
    for result in found:
        yield (result.name, result.protocol, "last"), result.value
        if result.best is not None:
            yield (result.name, result.protocol, "best"), result.best


def _head(name: str, protocol: str, which: str) -> str:
    more = "" if which == "last" else f", {which} backbone"
    words = html.escape(label(name)) + more
    return f"{words}<br><code>{html.escape(name)}</code> <code>{html.escape(protocol)}</code>"


def _line(values: Sequence[float | None]) -> Iterator[str]:
    """The scores of one measure; the highest is set off."""
    best = max(value for value in values if value is not None)
    for place, value in enumerate(values):
        if value is None:
            yield UNNAMED
            continue
        shown = f"<b>{percent(value)}</b>" if value == best else percent(value)
        gap = "" if place == 0 or values[0] is None else f"<br><small>{points(value - values[0])}</small>"
        yield shown + gap


def _curves(names: Sequence[str], measures: Sequence[Sequence[Measure]]) -> Section:
    title, reading = "Curves", "The course of each training over its steps."
    legend = "".join(
        f'<span><span class="swatch" style="border-top: 3px {figures.dash(place)} {figures.run_colour(place)}">'
        f"</span> {html.escape(name)}</span>"
        for place, name in enumerate(names)
    )
    drawn = []
    for prefix, heading, text, share in CURVES:
        lines = [series(own, prefix) for own in measures]
        if any(line.steps.size for line in lines):
            said = "; ".join(
                f"{name} {line.values[-1]:.3g} at step {line.steps[-1]:.0f}"
                for name, line in zip(names, lines, strict=True)
                if line.steps.size
            )
            drawing = figures.overlaid(lines, prefix, f"{heading}, {said}", percent=share)
            drawn.append(chart(heading, with_protocols(text, lines), drawing))
    if not drawn:
        return Section("curves", title, reading, missing("pretrain"))
    body = f'<p class="keyline">{legend}</p><div class="charts">{"".join(drawn)}</div>'
    return Section("curves", title, reading, body)


def _settings(names: Sequence[str], settings: Sequence[dict[str, Any]]) -> Section:
    reading = "Every setting in which not all of these runs are alike."
    rows = [
        [f"<code>{html.escape(path)}</code>", *(html.escape(_text(value)) for value in values)]
        for path, values in different(settings)
    ]
    body = _table(["setting", *map(html.escape, names)], rows, "settings") if rows else "<p>All are alike.</p>"
    return Section("settings", "Settings that differ", reading, body)


def different(values: Sequence[Any], path: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield ('a.b', its value in each run) for every setting that differs; None where a run has none.

    What is of another kind in another run is one setting, as its options have little to do with each other.
    """
    if all(value == values[0] for value in values):
        return
    if not all(isinstance(value, dict) for value in values) or len({str(value.get("kind")) for value in values}) > 1:
        yield path, values
        return
    for key in dict.fromkeys(key for value in values for key in value):
        yield from different([value.get(key) for value in values], f"{path}.{key}" if path else str(key))


def _text(value: object) -> str:
    """A setting in words; of options those that are given."""
    match value:
        case None:
            return UNNAMED
        case str():
            return value
        case dict():
            return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items() if inner is not None)
        case list():
            return " · ".join(map(_text, value))
        case _:
            return json.dumps(value)


def _progress(names: Sequence[str], runs: Sequence[RunFolder], measures: Sequence[Sequence[Measure]]) -> Section:
    reading = "How far each run has come, and what it worked with."
    lines = []
    for name, run, own in zip(names, runs, measures, strict=True):
        speed = [m.value for m in own if m.name == "train/images_per_second"]
        lines.append(
            [
                html.escape(name),
                f"{max((m.step for m in own if m.name.startswith('train/')), default=0):,}",
                "trained" if run.backbone.exists() else "not trained yet",
                f"{statuses(run.views)['made']:,}",
                f"{np.median(speed):,.0f}" if speed else UNNAMED,
                f"{run.quarantined():,}",
            ]
        )
    head = ["run", "steps", "backbone", "views generated", "images a second", "images set aside"]
    return Section("progress", "Progress", reading, _table(head, lines, "progress"))


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], kind: str) -> str:
    """Lay out lines of HTML, of which the first cell says what the line is about."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(
        f'<tr><th scope="row">{line[0]}</th>{"".join(f"<td>{cell}</td>" for cell in line[1:])}</tr>' for line in lines
    )
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'
