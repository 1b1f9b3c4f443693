"""Parts of the labelled images for learning from few labels: as a list names them, or balanced by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genview.errors import UserError
from genview.evaluation.continuing import digest_of_file
from genview.images import ImageSource
from genview.seeds import seed_of


def balanced(labels: Tensor, share: float, seed: int) -> list[int]:
    """Return sorted indices of about `share` of the images, as many of each class as of any other.

    That is share × N / C of each of the C classes, rounded, but at least one, and at most all of a class.
    """
    classes = labels.unique()
    count = max(1, round(share * len(labels) / len(classes)))
    chance = torch.Generator().manual_seed(seed_of(seed, "", 0, "few labels"))
    chosen: list[int] = []
    for label in classes:
        own = torch.nonzero(labels == label).flatten()
        chosen += own[torch.randperm(len(own), generator=chance)[:count]].tolist()
    return sorted(chosen)


def listed(source: ImageSource, path: Path, share: float) -> list[int]:
    """Return sorted indices of the images that a text file names, a line each.

    A name is the end of a key, beginning at a slash: 'n01440764_10156.JPEG', as in SimCLR's lists of ImageNet, is
    'n01440764/n01440764_10156.JPEG'. Empty lines are passed over, and a name may occur more than once.

    Raises:
        UserError: the file cannot be read or names nothing, a name is that of no image or of several, a class has no
            image in it, or it is far from the `share` of all images after which results are named.
    """
    names = _names(path)
    places = _by_end(source, {name.count("/") + 1 for name in names})
    images = {name: places.get(name, []) for name in names}
    _refuse(path, [name for name, rows in images.items() if not rows], "belong to no image")
    _refuse(path, [name for name, rows in images.items() if len(rows) > 1], "belong to several images")
    chosen = sorted({row for rows in images.values() for row in rows})
    missing = set(range(len(source.classes))) - {source.label(row) for row in chosen}
    if missing:
        raise UserError(
            f"{path} has no image of {len(missing)} of {len(source.classes)} classes (the first: "
            f"'{source.classes[min(missing)]}'): every class needs at least one."
        )
    found_share = len(chosen) / len(source)
    if not share / 2 <= found_share <= 2 * share:
        raise UserError(
            f"{path} names {len(chosen)} of {len(source)} images, a share of {found_share:.2g}, and not {share:g} of "
            "them: results are named after the share, so say what it is."
        )
    return chosen


def digest_of_list(path: Path) -> str:
    """Name the content of a list.

    Raises:
        UserError: it cannot be read, or names nothing.
    """
    _names(path)
    return digest_of_file(path)


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of labelled images {path} cannot be read: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"The list of labelled images {path} is empty.")
    return names


def _by_end(source: ImageSource, depths: set[int]) -> dict[str, list[int]]:
    """Return the images by the last `depths` parts of their keys."""
    places: dict[str, list[int]] = {}
    for i in range(len(source)):
        parts = source.key(i).split("/")
        for depth in depths:
            if depth <= len(parts):
                places.setdefault("/".join(parts[-depth:]), []).append(i)
    return places


def _refuse(path: Path, names: Sequence[str], why: str) -> None:
    if names:
        raise UserError(
            f"{len(names)} names in {path} {why} of these to train on, such as {', '.join(map(repr, names[:3]))}. "
            "A name should be the end of one image's path: from a folder on, where file names alone are not unique."
        )
