"""The table of `view_quality.py`: what its columns are, and how they are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill


@dataclass(frozen=True)
class Row:
    """One line of the table, over the sources whose view was kept; None where a column has no meaning.

    `COLUMNS` says what each is.
    """

    name: str
    accuracy: float
    relative: float
    agreement: float
    rmse: float
    feature_distance: float
    frechet: float
    to_training: float
    training_copies: float
    source_copies: float
    between_draws: float | None = None
    inside: float | None = None
    outside: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    rmse_inside: float | None = None
    rmse_outside: float | None = None
    images_per_second: float | None = None
    kept: float = 1.0


COLUMNS = {
    "accuracy": ("class kept", "share of views that the classifier puts into their source's class"),
    "relative": ("relative", "that share, relative to the share of the same sources that it gets right"),
    "agreement": ("same answer", "share of views of which it says the same as of their source"),
    "rmse": ("RMSE", "root mean square of the difference from the source, in pixels, of a range of 1"),
    "feature_distance": ("feature distance", "1 less the cosine similarity with the source in its features"),
    "frechet": (
        "Fréchet distance",
        "distance of the views' features from those of held-out images that are no sources, as two Gaussians. Few "
        "views make it too large, so it is to be read beside the row 'source': as many real images. Its unit is this "
        "classifier's",
    ),
    "to_training": (
        "to training",
        "distance to the nearest training image (RMSE, mirrored or not) over that of the source: the median. Blurred "
        "views have a lower one, too",
    ),
    "training_copies": (
        "copies training",
        "share of views whose nearest training image is nearer than half the mean distance of the next fifty; row "
        "'source' has the share of real images that are taken for copies",
    ),
    "source_copies": (
        "copies source",
        "share of views that differ less from their source than it does from itself as JPEG of quality 75 (RMSE)",
    ),
    "between_draws": ("draws apart", "RMSE between two draws of a source, over the first quarter of the sources"),
    "inside": (
        "alike inside",
        "similarity of view and source at the same place in the classifier's features half way, inside the masks of "
        "photographs that it has not seen, either: 1 is the same and about 0 is unrelated",
    ),
    "outside": ("alike outside", "the same outside the masks"),
    "difference": ("inside − outside", "mean over the photographs: above 0 where foreground is kept better"),
    "difference_error": ("± error", "standard error of that mean"),
    "rmse_inside": ("RMSE inside", "of pixels, inside the masks"),
    "rmse_outside": ("RMSE outside", "of pixels, outside the masks"),
    "images_per_second": ("views/s", "made a second, without encoding the sources, which is done once for all draws"),
    "kept": ("kept", "share of views that a filter kept"),
}
"""Fields of a row in the order of the table: head, and meaning."""
WIDTH = 11


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out for reading; a dash stands for what has no meaning there."""
    first = max(12, *(len(row.name) + 1 for row in rows))
    heads = [("", head) if " " not in head else tuple(head.split(" ", 1)) for head, _ in COLUMNS.values()]
    lines = [_line("", [pair[n] for pair in heads], first) for n in (0, 1)]
    return "\n".join([*lines, *(_line(row.name, [_shown(getattr(row, c)) for c in COLUMNS], first) for row in rows)])


def _line(name: str, cells: Sequence[str], first: int) -> str:
    return f"{name:<{first}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def meanings() -> str:
    """Say what every column is, for --help."""
    parts = [f"{head} ({field}): {text}." for field, (head, text) in COLUMNS.items()]
    return "\n".join(["columns, with their names in the last line:", *(_indented(part) for part in parts)])


def _indented(text: str) -> str:
    return fill(text, 100, initial_indent="  ", subsequent_indent="      ")
