"""One HTML file that shows what happened in a run; it needs no network and no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from genview.images.source import ImageSource, Tell, silent
from genview.report.collect import Material, collect
from genview.report.look import framed
from genview.report.section import Section, contents
from genview.report.sections import sections_of
from genview.report.words import outcome, run_name
from genview.store import RunFolder, write_bytes


def write_page(
    run: RunFolder, source: ImageSource | None = None, tell: Tell = silent, out: Path | None = None
) -> Path:
    """Write a page from whatever the run folder holds, finished or not, to `out`, `run.page` where None; return it.

    Originals are shown from `source` where it is given, else from the examples that the analysis kept. `tell` is told
    how many pictures are made.

    Raises:
        UserError: a file of the run is damaged, or the disk is full.
    """
    material = collect(run)
    sections = sections_of(material, source, tell)
    lead = html.escape(outcome(material.results, material.treatment))
    return write_framed(run, lead, _facts(material), sections, out)


def write_framed(
    run: RunFolder,
    lead: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    out: Path | None = None,
    verb: str = "run",
) -> Path:
    """Write a page with these sections below a lead and some facts, both HTML, to `out`, `run.page` where None.

    `verb` is the one that made what the page shows.

    Raises:
        UserError: the disk is full.
    """
    page = framed(f"{run_name(run.root)} · genview", _header(run, verb, lead, facts, sections), sections)
    write_bytes(out or run.page, page.encode("utf-8", "replace"))
    return out or run.page


def _header(
    run: RunFolder, verb: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]
) -> str:
    dated = [file for file in (run.measures_file, run.experiment) if file.exists()]
    when = datetime.fromtimestamp(dated[0].stat().st_mtime) if dated else datetime.now()
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f'<p class="date">genview {verb} · {when.day} {when:%B %Y, %H:%M}</p>'
        f"<h1>{html.escape(run_name(run.root))}</h1>"
        f'<p class="lead">{lead}</p>'
        f'<dl class="facts">{cells}</dl>{contents(sections)}'
    )


def _facts(material: Material) -> list[tuple[str, str]]:
    train = [m for m in material.measures if m.name.startswith("train/")]
    speed = [m.value for m in train if m.name == "train/images_per_second"]
    waiting = [m.value for m in train if m.name == "train/waiting"]
    return [
        ("images analysed", f"{material.analysed:,}"),
        ("views generated", f"{material.generated:,}"),
        ("training steps", f"{max((m.step for m in train), default=0):,}"),
        ("images a second", f"{np.median(speed):,.0f}" if speed else "–"),
        ("of the time spent waiting for data", f"{np.mean(waiting):.0%}" if waiting else "–"),
        ("images set aside", f"{len(material.quarantined):,}"),
    ]
