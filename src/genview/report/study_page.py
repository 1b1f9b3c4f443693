"""The page of a study: its figure, its table, and what became of each run."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from genview.report.comparison import Design, Entry, Row, by_measure
from genview.report.look import framed
from genview.report.section import Section, contents
from genview.report.tables import COLUMNS, PAIRED, cells, enough


def study_page(design: Design, rows: Sequence[Row], drawing: bytes | None, out: Path) -> str:
    """Return the page as HTML; its links to the pages of the runs are relative to `out`."""
    sections = [_figure(design, drawing)] * (drawing is not None)
    sections += [_scores(design, number, group) for number, group in enumerate(by_measure(rows))]
    sections.append(_runs(design, out))
    done = sum(entry.run.finished.exists() for entry in design.entries)
    header = (
        f'<p class="date">genview study</p><h1>{html.escape(out.resolve().name)}</h1>'
        f'<p class="lead">{done} of {len(design.entries)} runs are finished. Compared with '
        f"{html.escape(design.axes[design.axis])} = {html.escape(design.reference)}, in percent.</p>"
        f"{contents(sections)}"
    )
    return framed(f"{out.resolve().name} · genview", header, sections)


def _figure(design: Design, drawing: bytes | None) -> Section:
    data = base64.b64encode(drawing or b"").decode()
    words = f"Differences to {design.reference} and their intervals; the tables below have the numbers."
    picture = f'<img class="forest" src="data:image/png;base64,{data}" alt="{html.escape(words)}">'
    reading = "Points of difference at equal seed. A hollow mark is a single seed, which has no interval."
    return Section("differences", "Differences", reading, f'<div class="scroll" tabindex="0">{picture}</div>')


def _scores(design: Design, number: int, rows: Sequence[Row]) -> Section:
    lines = ([*map(html.escape, row.variants), *cells(row)] for row in rows)
    body = _table([*design.axes, *COLUMNS], lines, len(design.axes), "variants")
    return Section(f"measure-{number}", html.escape(rows[0].title), f"{PAIRED} {enough(rows)}", body)


def _runs(design: Design, out: Path) -> Section:
    lines = ([*map(html.escape, entry.variants), str(entry.seed), _state(entry, out)] for entry in design.entries)
    reading = "Each run has a page of its own, which its state leads to while this page lies in the study's folder."
    body = _table([*design.axes, "seed", "state"], lines, len(design.axes), "variants states")
    return Section("runs", "Runs", reading, body)


def _state(entry: Entry, out: Path) -> str:
    run = entry.run
    if run.finished.exists():
        return f'<a href="{html.escape(run.page.relative_to(out).as_posix())}">finished</a>'
    if run.failure.exists():
        return f"failed: {html.escape(run.failure.read_text(errors='replace').strip().splitlines()[-1])}"
    return "begun" if run.checkpoints.exists() or run.backbone.exists() else "not begun"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], names: int, kind: str) -> str:
    """Lay out lines of HTML, of which the first `names` cells say what the line is about; `kind` is for the style."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    rows = ""
    for line in lines:
        first = "".join(f'<th scope="row">{cell}</th>' for cell in line[:names])
        rows += f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in line[names:])}</tr>"
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'
