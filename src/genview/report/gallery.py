"""Small pictures for the page: originals beside views, foreground maps, pairs; each a tile with a caption."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageOps

from genview.images.decode import decode
from genview.images.source import ImageSource, Tell, UnreadableImage, silent
from genview.images.thumbnail import thumbnail
from genview.report.collect import Columns, Material, spread
from genview.report.words import level_name
from genview.store import read_at

SIDE = 128
"""Longest side of a thumbnail in pixels."""
PER_LEVEL = 8
MOST_LEVELS = 8
MAPS = 12
EXTREMES = 8
BACKGROUND, FOREGROUND = np.array([0.0, 114.0, 178.0]), np.array([230.0, 159.0, 0.0])
"""Blue and orange that colour-blind readers tell apart (Okabe and Ito)."""


def data_uri(file: bytes) -> str:
    """Return the address of a small image, a PNG or JPEG file, that lies in the page itself."""
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def picture(image: Image.Image | np.ndarray | None, alt: str) -> str:
    """Return an img element, or a box that says that the image is not at hand."""
    if image is None:
        return f'<div class="gone">{html.escape(alt)}: not at hand</div>'
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    small = ' class="small"' if min(image.size) < 64 else ""
    return f'<img{small} src="{data_uri(thumbnail(image, SIDE))}" alt="{html.escape(alt)}" loading="lazy">'


def tile(pictures: Iterable[str], caption: str, key: str) -> str:
    """Return pictures side by side; `caption` is HTML, `key` is escaped here and shown as tooltip too."""
    name = html.escape(key)
    return (
        f'<figure class="tile" title="{name}"><div>{"".join(pictures)}</div>'
        f"<figcaption>{caption}<span>{name}</span></figcaption></figure>"
    )


def by_level(material: Material, source: ImageSource | None, tell: Tell = silent) -> Iterator[str]:
    """Yield a row of tiles for each of at most `MOST_LEVELS` levels, lowest first; needs `material.views`."""
    views = material.views
    assert views is not None
    known = _known(material.maps)
    levels = np.unique(views["level"]).tolist()
    if len(levels) > MOST_LEVELS:
        yield f'<p class="note">{MOST_LEVELS} of {len(levels)} levels are shown.</p>'
    chosen = {level: _choose(views, level, known, source is None) for level in spread(levels, MOST_LEVELS)}
    if source is not None:
        wanted = {str(views["key"][row]) for rows in chosen.values() for row, _ in rows}
        known = known | find(source, wanted, tell)
    for level, rows in chosen.items():
        tiles = "".join(_view_tile(material, row, place, known) for row, place in rows)
        yield f'<div class="level">{_level_head(views, level)}<div class="tiles">{tiles}</div></div>'


def _choose(views: Columns, level: int, known: dict[str, Image.Image], prefer_known: bool) -> list[tuple[int, str]]:
    """Return the rows to show of a level, each with what makes it worth showing; "" where there are no scores."""
    rows = np.flatnonzero(views["level"] == level)
    scored = rows[np.isfinite(views["score"][rows])]
    if len(scored):
        return ranked(scored[np.argsort(views["score"][scored], kind="stable")].tolist())
    return [(row, "") for row in _evenly(views, rows.tolist(), known, prefer_known)]


def ranked(rows: list[int]) -> list[tuple[int, str]]:
    """Return at most `PER_LEVEL` of the rows, sorted by score: the lowest, those in the middle, and the highest."""
    count = min(len(rows), PER_LEVEL)
    ends = (count + 1) // 3
    middle = count - 2 * ends
    start = (len(rows) - middle) // 2
    return [
        *((row, "lowest") for row in rows[:ends]),
        *((row, "median") for row in rows[start : start + middle]),
        *((row, "highest") for row in rows[len(rows) - ends :]),
    ]


def _evenly(views: Columns, rows: list[int], known: dict[str, Image.Image], prefer_known: bool) -> list[int]:
    if prefer_known:
        with_original = [row for row in rows if str(views["key"][row]) in known]
        rest = [row for row in rows if str(views["key"][row]) not in known]
        chosen = spread(with_original, PER_LEVEL)
        return chosen + spread(rest, PER_LEVEL - len(chosen))
    return spread(rows, PER_LEVEL)


def _known(maps: Columns | None) -> dict[str, Image.Image]:
    if maps is None:
        return {}
    return {str(key): Image.fromarray(image) for key, image in zip(maps["keys"], maps["images"], strict=True)}


def find(source: ImageSource, wanted: set[str], tell: Tell = silent) -> dict[str, Image.Image]:
    """Look the wanted keys up in a source, in one pass over its keys; return centre squares, at most `SIDE` wide.

    Unreadable images are left out.
    """
    found: dict[str, Image.Image] = {}
    left = set(wanted)
    for i in range(len(source)):
        if not left:
            break
        if (key := source.key(i)) in left:
            left.remove(key)
            try:
                found[key] = _centre(source.image(i))
            except UnreadableImage:
                continue
            tell("pictures", len(wanted) - len(left), len(wanted), "")
    return found


def _centre(image: Image.Image) -> Image.Image:
    side = min(SIDE, *image.size)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def _level_head(views: Columns, level: int) -> str:
    said = ""
    for name, text in (("score", "similarity to the source"), ("diversity", "distance between draws")):
        values = views[name][views["level"] == level].astype(float)
        values = values[np.isfinite(values)]
        said += f"<p>{text}: {values.mean():.2f} on average</p>" if len(values) else ""
    name = level_name(level)
    return f"<div><h3>{name[:1].upper()}{name[1:]}</h3>{said}</div>"


def _view_tile(material: Material, row: int, place: str, known: dict[str, Image.Image]) -> str:
    views = material.views
    assert views is not None
    key, level, score = str(views["key"][row]), int(views["level"][row]), float(views["score"][row])
    try:
        shard = material.run.views / str(views["shard"][row])
        view = decode(read_at(shard, int(views["offset"][row]), int(views["length"][row])))
    except (OSError, UnreadableImage):
        view = None
    caption = f"{place} similarity <b>{score:.2f}</b>" if place else ""
    pictures = picture(known.get(key), f"Original {key}"), picture(view, f"View of {key} at {level_name(level)}")
    return tile(pictures, caption, key)


def foreground(maps: Columns) -> str:
    """Return tiles of image, heat map and mask, from the least foreground to the most."""
    scores = np.nan_to_num(maps["maps"].astype(np.float64))
    scale = scale_of(scores)
    tiles = []
    for i in spread(np.argsort(maps["ratio"], kind="stable").tolist(), MAPS):
        key, ratio = str(maps["keys"][i]), float(maps["ratio"][i])
        image = _full(maps["images"][i])
        pictures = (
            picture(image, f"Image {key}"),
            picture(heat(image, scores[i] / scale), f"Foreground score of {key} over the image"),
            picture(cut_out(image, scores[i] > 0), f"Foreground mask of {key}, {ratio:.0%} of the image"),
        )
        tiles.append(tile(pictures, f"<b>{ratio:.0%}</b> foreground", key))
    return f'<div class="tiles wide">{"".join(tiles)}</div>'


def scale_of(scores: np.ndarray) -> float:
    """Return what scores are divided by before they are laid over images: nearly all are then within [−1, 1]."""
    return max(float(np.percentile(np.abs(scores), 98)), 1e-9) if scores.size else 1.0


def heat(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Lay scores h×w in [−1, 1] over a grey copy of an image uint8 S×S×3: blue below 0, orange above."""
    image = _full(image)
    fine = np.asarray(_enlarged(Image.fromarray(np.clip(scores, -1, 1).astype(np.float32)), smooth=True))[..., None]
    opacity = 0.85 * np.abs(fine) ** 0.7
    colour = np.where(fine > 0, FOREGROUND, BACKGROUND)
    return np.asarray((1 - opacity) * _grey(image) + opacity * colour).round().astype(np.uint8)


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darken all of an image uint8 S×S×3 but the mask h×w, and outline the mask in orange."""
    fine = np.asarray(_enlarged(Image.fromarray(mask.astype(np.uint8) * 255), smooth=False)) > 0
    padded = np.pad(fine, 2, mode="edge")
    size = len(fine)
    shifted = [padded[y : y + size, x : x + size] for y, x in ((0, 2), (4, 2), (2, 0), (2, 4))]
    edge = fine & ~np.logical_and.reduce(shifted)
    cut = np.where(fine[..., None], image, 0.3 * _grey(image))
    return np.asarray(np.where(edge[..., None], FOREGROUND, cut)).round().astype(np.uint8)


def _full(image: np.ndarray) -> np.ndarray:
    """Return a square image at `SIDE` pixels; the pixels of a tiny one stay sharp."""
    return image if len(image) == SIDE else np.asarray(_enlarged(Image.fromarray(image), smooth=len(image) >= 64))


def _enlarged(image: Image.Image, *, smooth: bool) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(image.astype(np.float64).mean(axis=2, keepdims=True))


def extremes(pairs: Columns) -> tuple[list[int], list[int]]:
    """Return the rows of the highest weights (falling) and of the lowest (rising); none is in both."""
    order = [int(i) for i in np.argsort(pairs["weight"], kind="stable") if np.isfinite(pairs["weight"][i])]
    high = min(EXTREMES, (len(order) + 1) // 2)
    return order[::-1][:high], order[: min(EXTREMES, len(order) - high)]


def weighted(pairs: Columns, rows: list[int]) -> str:
    """Return tiles of both views of the given pairs, with weight, similarities and level."""
    tiles = []
    for i in rows:
        key, level = str(pairs["key"][i]), level_name(int(pairs["level"][i]))
        weight, fg, bg = (float(pairs[name][i]) for name in ("weight", "foreground", "background"))
        caption = f"weight <b>{weight:.2f}</b> · {level}<br>s<sub>fg</sub> {fg:.2f} · s<sub>bg</sub> {bg:.2f}"
        pictures = (_shown(pairs[side][i], f"View {side} of {key}") for side in ("a", "b"))
        tiles.append(tile(pictures, caption, key))
    return f'<div class="tiles four">{"".join(tiles)}</div>'


def _shown(file: bytes, alt: str) -> str:
    return f'<img src="{data_uri(file)}" alt="{html.escape(alt)}" loading="lazy">'
