"""The section that shows which classes a linear probe mistakes for which."""

from __future__ import annotations

import html

import numpy as np

from genview.report.collect import Columns
from genview.report.section import Section, missing

TITLE = "Confusions"
MOST_CLASSES = 20
MOST_ROWS = 20


def confusion(predictions: Columns | None) -> Section:
    """What a linear probe takes test images for: a matrix of a few classes, the most frequent mistakes of many."""
    reading = (
        "What a linear probe on the frozen features takes the test images of a class for, in percent of the class. "
        "It is fitted for this page on at most 20,000 training images, so its accuracy may differ a little from the "
        "results above."
    )
    if predictions is None or not len(predictions["label"]):
        return Section("confusion", TITLE, reading, missing("evaluate", " (it needs labelled images)"))
    classes, counts = counted(predictions)
    right = f"<p>Right on {np.trace(counts) / counts.sum():.1%} of {counts.sum():,} test images.</p>"
    body = _matrix(classes, counts) if len(classes) <= MOST_CLASSES else _lists(classes, counts)
    return Section("confusion", TITLE, reading, right + body)


def counted(predictions: Columns) -> tuple[list[str], np.ndarray]:
    """Return the classes C in the order of their names, and how many images of each are taken for each, C×C."""
    label, predicted = (predictions[name].astype(str) for name in ("label", "predicted"))
    classes = np.unique(np.concatenate([label, predicted]))
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (np.searchsorted(classes, label), np.searchsorted(classes, predicted)), 1)
    return classes.tolist(), counts


def _matrix(classes: list[str], counts: np.ndarray) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in classes)
    rows = ""
    for number, name in enumerate(classes):
        cells = "".join(_cell(share, place == number) for place, share in enumerate(shares[number].tolist()))
        cells += f'<td class="all">{counts[number].sum():,}</td>'
        rows += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Confusion matrix"><table class="matrix">'
        f"<caption>Rows are classes, columns what their images are taken for.</caption>"
        f'<thead><tr><td></td>{head}<th scope="col"><span>images</span></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(share: float, right: bool) -> str:
    kind = ' class="right"' if right else ""
    shown = f"{100 * share:.0f}" if share else ""
    return f'<td{kind} style="--share:{share:.2f}">{shown}</td>'


def _lists(classes: list[str], counts: np.ndarray) -> str:
    """The most frequent mistakes, and the classes that are least often right."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_ROWS]
    sizes = np.maximum(counts.sum(axis=1), 1)
    pairs = [(int(k) // len(classes), int(k) % len(classes)) for k in order if wrong.flat[k]]
    mistakes = [[classes[a], classes[b], f"{wrong[a, b]:,}", f"{wrong[a, b] / sizes[a]:.0%}"] for a, b in pairs]
    accuracy = np.diag(counts) / sizes
    seen = [k for k in np.argsort(accuracy, kind="stable").tolist() if counts[k].sum()][:MOST_ROWS]
    least = [[classes[k], f"{accuracy[k]:.0%}", f"{sizes[k]:,}"] for k in seen]
    return (
        f"<h3>Most frequent mistakes</h3>{_table(['class', 'taken for', 'images', 'of the class'], mistakes)}"
        f"<h3>Least often right</h3>{_table(['class', 'right', 'images'], least)}"
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
