"""The model card: README.md beside exported weights; what they are, how they were made, and how to load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from genview.export.target import Agreement, Source, Target
from genview.report.collect import Result


@dataclass(frozen=True)
class Facts:
    """How a backbone was made: a title, (what, text) rows, final scores, and sentences a reader should know."""

    title: str
    rows: Sequence[tuple[str, str]]
    scores: Sequence[Result] = ()
    remarks: Sequence[str] = ()


def card(source: Source, target: Target, facts: Facts, agreed: Agreement) -> str:
    """Return the card as Markdown with the hub's YAML head."""
    head = {
        "library_name": target.library,
        "tags": ["image-feature-extraction", "self-supervised-learning", "genview"],
    }
    sections = [
        "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items()) + "---",
        f"# {facts.title}",
        f"A `{source.settings.name}` without a classifier: images in, {source.backbone.width} features out. "
        f"Written by `genview export` in {target.what}; checked when written: {agreed}.",
        f"## How to load it\n\n```python\n{usage(source, target)}```",
        f"## How it was made\n\n{_table(('', ''), facts.rows)}",
    ]
    if facts.scores:
        sections.append(f"## How good it is\n\n{_scores(facts.scores)}")
    sections += [f"> {remark}" for remark in facts.remarks]
    return "\n\n".join(sections) + "\n"


def usage(source: Source, target: Target) -> str:
    """Return Python lines, to run as they are where the card lies, that load the backbone and compute features."""
    return (
        f"{target.imports}\n"
        'folder = "."  # where this file lies\n'
        f"images = torch.rand(2, 3, {source.size}, {source.size})  # floats in [0, 1]\n"
        f"{target.snippet(source)}"
    )


def _scores(scores: Sequence[Result]) -> str:
    """Return a table; without the columns of a baseline where there is none."""
    beside = any(score.baseline is not None for score in scores)
    head = ["measure", "protocol", "this backbone"] + ["same budget without views and weights", "difference"] * beside
    return _table(head, [_row(score, beside=beside) for score in scores])


def _row(score: Result, *, beside: bool) -> list[str]:
    row = [score.name, score.protocol, f"{score.value:.1%}"]
    if beside and score.baseline is not None and score.difference is not None:
        return [*row, f"{score.baseline:.1%}", f"{100 * score.difference:+.1f} points"]
    return row + ["–", "–"] * beside


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in lines
    )
