"""The section in which training pairs are browsed; without scripts it shows those of extreme weight."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator

import numpy as np

from genview.report import gallery
from genview.report.collect import Columns
from genview.report.pairs import Gathered
from genview.report.section import Section, missing
from genview.report.words import level_name

TITLE = "Training pairs"
MOST_LEVELS = 12
NUMBERS = {
    "weight": "Weight",
    "ratio": "Foreground ratio",
    "score": "Similarity of the view",
    "foreground": "Foreground similarity",
    "background": "Background similarity",
    "loss": "Loss",
    "level": "Level",
    "step": "Step",
}
FIRST = ("weight", "ratio", "score")
"""What can be bounded without asking for more."""


def browser(found: Gathered | None) -> Section:
    """Training pairs, to be filtered and sorted."""
    reading = (
        "Two views that training pulled together. In each row: the original, its foreground map, its generated view, "
        "and the two crops as the encoder saw them. A weight is high where the foregrounds agree (s<sub>fg</sub>) "
        "while the backgrounds differ (s<sub>bg</sub>); 1 is the mean. Views that lost their source should have a "
        "low one."
    )
    if found is None:
        return Section("pairs", TITLE, reading, missing("pretrain"))
    return Section("pairs", TITLE, reading, _body(found), "pairs.js")


def _body(found: Gathered) -> str:
    known = {name: title for name, title in NUMBERS.items() if np.isfinite(found.columns[name].astype(float)).any()}
    sample = len(found.columns["key"]) - found.pictured
    note = (
        f"{found.pictured:,} pairs have pictures: a random sample of all that the training looked at, and those of "
        f"the highest and the lowest weights. {sample:,} points more are an even sample of the latest "
        f"{found.recorded:,}."
    )
    return (
        f'<noscript><p class="note">With scripts, all of them can be filtered and sorted here.</p>'
        f"{_extremes(found, known)}</noscript>"
        f'<div id="pairs-browser" class="browser" hidden><form aria-label="Filter and sort pairs">'
        f'<div class="controls">{_controls(found, known)}{_order(found.columns, known)}</div>'
        '<p class="note count" role="status"></p><div class="cards"></div><p class="pager">'
        '<button type="button">Back</button><span class="place"></span><button type="button">Next</button></p>'
        f'<div class="controls">{_axes(known)}</div><div class="points"><canvas class="cloud" role="img"></canvas>'
        f'</div><p class="note">{note}</p></form></div>'
        f'<script type="application/json" id="pairs-data">{_data(found)}</script>'
    )


def _controls(found: Gathered, known: dict[str, str]) -> str:
    levels = np.unique(found.columns["level"]).tolist()
    chosen = "".join(
        f'<label><input type="checkbox" name="level" value="{level}" checked> {_short(level)}</label>'
        for level in levels
    )
    few = len(levels) <= MOST_LEVELS
    first = [name for name in known if name in FIRST]
    rest = [name for name in known if name not in (*FIRST, "level")] + ["level"] * (not few)
    more = "".join(_range(found.columns, name) for name in rest)
    return (
        (f'<fieldset class="levels"><legend>Level</legend><div>{chosen}</div></fieldset>' if few else "")
        + _classes(found.columns)
        + "".join(_range(found.columns, name) for name in first)
        + f"<details><summary>More bounds</summary><div>{more}</div></details>"
    )


def _classes(columns: Columns) -> str:
    names = _class_names(columns)
    if not names:
        return ""
    options = "".join(f'<option value="{number}">{html.escape(name)}</option>' for number, name in enumerate(names))
    return f'<label>Class<select name="class"><option value="">all</option>{options}</select></label>'


def _range(columns: Columns, name: str) -> str:
    values = columns[name].astype(float)
    values = values[np.isfinite(values)]
    ends = {"low": ("lowest", values.min()), "high": ("highest", values.max())}
    inputs = "".join(
        f'<input type="number" step="any" data-column="{name}" data-end="{end}" placeholder="{_shown(value)}" '
        f'aria-label="{NUMBERS[name]}, {word}">'
        for end, (word, value) in ends.items()
    )
    return f'<fieldset class="range"><legend>{NUMBERS[name]}</legend><div>{inputs}</div></fieldset>'


def _shown(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.3g}"


def _order(columns: Columns, known: dict[str, str]) -> str:
    """Choose the order; the script calls its ways 'A to Z' and 'Z to A' while pairs are sorted by class."""
    choices = known | ({"class": "Class"} if _class_names(columns) else {})
    return (
        f'<label>Sort by<select name="sort">{_options(choices, "weight")}</select></label>'
        '<label>Order<select name="order"><option value="high">highest first</option>'
        '<option value="low">lowest first</option></select></label><button type="reset">Show all</button>'
    )


def _axes(known: dict[str, str]) -> str:
    """Choose what the cloud of points shows."""
    weighed = "foreground" in known
    chosen = {"up": "foreground" if weighed else "loss", "across": "background" if weighed else "level"}
    titles = {"up": "Points upwards", "across": "and to the right"}
    return "".join(
        f'<label>{titles[name]}<select name="{name}">{_options(known, value)}</select></label>'
        for name, value in chosen.items()
    )


def _options(known: dict[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{name}"{" selected" if name == chosen else ""}>{title}</option>'
        for name, title in known.items()
    )


def _short(level: int) -> str:
    return level_name(level).removeprefix("level ")


def _class_names(columns: Columns) -> list[str]:
    return sorted({name for name in columns["class"].tolist() if name})


def _extremes(found: Gathered, known: dict[str, str]) -> str:
    if "foreground" not in known:
        return ""
    pictured = {name: values[: found.pictured] for name, values in found.columns.items()}
    high, low = gallery.extremes(pictured)
    pictured |= {side: np.array(found.pictures[side], dtype=object) for side in "ab"}
    body = f"<h3>Highest weights</h3>{gallery.weighted(pictured, high)}"
    return body + (f"<h3>Lowest weights</h3>{gallery.weighted(pictured, low)}" if low else "")


def _data(found: Gathered) -> str:
    """Everything as JSON that may stand in a script element; unknown numbers and classes are null."""
    columns = found.columns
    place = {name: number for number, name in enumerate(_class_names(columns))}
    content = {
        "columns": {name: list(_numbers(columns[name])) for name in NUMBERS}
        | {"class": [place.get(name) for name in columns["class"].tolist()]},
        "pictures": {name: [file_in_page(file) for file in files] for name, files in found.pictures.items()},
        "keys": columns["key"][: found.pictured].tolist(),
        "classes": list(place),
        "names": {level: level_name(level) for level in np.unique(columns["level"]).tolist() if level < 0},
    }
    return json_in_page(content)


def json_in_page(content: object) -> str:
    """Return JSON that no parser of HTML takes for markup."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _numbers(values: np.ndarray) -> Iterator[float | None]:
    if values.dtype.kind in "iu":
        yield from values.tolist()
        return
    for value in values.tolist():
        yield float(f"{value:.4g}") if np.isfinite(value) else None


def file_in_page(file: bytes | None) -> str | None:
    """Return a file as text that JSON can hold."""
    return None if file is None else base64.b64encode(file).decode()
