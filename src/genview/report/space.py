"""The section that shows the learned space: test images on a map, and the nearest neighbours of each."""

from __future__ import annotations

import html

import numpy as np

from genview.report.browser import file_in_page, json_in_page
from genview.report.collect import Columns
from genview.report.section import Section, missing

TITLE = "The learned space"
WIDTH, HEIGHT, MARGIN = 1000, 620, 14
MOST_NAMED = 12
GOLDEN = 137.508
"""Degrees between the colours of neighbouring classes where these are many."""


def space(portrait: Columns | None) -> Section:
    """A map of test images coloured by class, and the neighbours of the one that is chosen."""
    reading = (
        "Each point is a test image; t-SNE puts images whose features are alike close together, while distances "
        "between groups mean little. Good features gather the images of a class, and the neighbours of an image, by "
        "the cosine of their features, show the same thing."
    )
    if portrait is None or not len(portrait["key"]):
        return Section("space", TITLE, reading, missing("evaluate", " (it needs labelled images)"))
    return Section("space", TITLE, reading, _body(portrait), "space.js")


def _body(portrait: Columns) -> str:
    classes = np.unique(portrait["label"].astype(str)).tolist()
    colours = {name: colour(number, len(classes)) for number, name in enumerate(classes)}
    legend = "".join(
        f'<span><span class="dot" style="background:{colours[name]}"></span> {html.escape(name)}</span>'
        for name in classes[:MOST_NAMED]
    )
    options = "".join(
        f'<option value="{number}">only {html.escape(name)}</option>' for number, name in enumerate(classes)
    )
    same = _agreement(portrait)
    note = (
        f"{len(portrait['key']):,} test images. Of the {portrait['neighbours'].shape[1]} nearest neighbours of an "
        f"image among them, {same:.0%} are of its class."
    )
    return (
        (f'<p class="keyline">{legend}</p>' if len(classes) <= MOST_NAMED else "")
        + f'<div class="map">{_svg(portrait, colours)}</div><p class="note">{note}</p>'
        '<noscript><p class="note">With scripts, the neighbours of each image can be looked at here.</p></noscript>'
        '<div id="space-browser" class="browser" hidden><form aria-label="Choose an image"><div class="controls">'
        '<label>Images<select name="which"><option value="all">all</option>'
        f'<option value="wrong">taken for another class</option>{options}</select></label>'
        '<button type="button" name="back">Back</button><button type="button" name="next">Next</button>'
        '<span class="place"></span></div></form><div class="chosen" aria-live="polite"></div></div>'
        f'<script type="application/json" id="space-data">{_data(portrait, classes)}</script>'
    )


def colour(number: int, of: int) -> str:
    """Return a colour for class `number`, of middling lightness, so that it shows on white and on black."""
    hue = 360 * number / of if of <= MOST_NAMED else GOLDEN * number % 360
    return f"hsl({hue:.0f} 65% {(44, 56, 50)[number % 3]}%)"


def _agreement(portrait: Columns) -> float:
    labels = portrait["label"].astype(str)
    if not portrait["neighbours"].size:
        return float("nan")
    return float((labels[portrait["neighbours"]] == labels[:, None]).mean())


def _places(portrait: Columns) -> np.ndarray:
    """Places on the drawing, N×2 in its units, filling it."""
    spots = np.stack([portrait["x"], -portrait["y"]], axis=1).astype(float)
    low, high = spots.min(axis=0), spots.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    return np.asarray(MARGIN + (spots - low) / np.maximum(high - low, 1e-9) * room)


def _svg(portrait: Columns, colours: dict[str, str]) -> str:
    places, labels = _places(portrait).round().astype(int), portrait["label"].astype(str)
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="5" fill="{colours[name]}"/>'
        for (x, y), name in zip(places.tolist(), labels.tolist(), strict=True)
    )
    said = f"Map of {len(labels):,} test images by t-SNE, coloured by their {len(colours)} classes"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{dots}</svg>'


def _data(portrait: Columns, classes: list[str]) -> str:
    every = np.unique(np.concatenate([np.array(classes), portrait["predicted"].astype(str)])).tolist()
    names = classes + [name for name in every if name not in set(classes)]
    place = {name: number for number, name in enumerate(names)}
    return json_in_page(
        {
            "keys": portrait["key"].tolist(),
            "classes": names,
            "label": [place[name] for name in portrait["label"].tolist()],
            "predicted": [place[name] for name in portrait["predicted"].tolist()],
            "places": _places(portrait).round().astype(int).tolist(),
            "neighbours": portrait["neighbours"].tolist(),
            "similarity": [[round(value, 3) for value in row] for row in portrait["similarity"].tolist()],
            "pictures": [file_in_page(file) for file in portrait["picture"].tolist()],
        }
    )
