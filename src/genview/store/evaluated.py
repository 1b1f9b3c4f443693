"""What an evaluation found about a backbone: a file that appears by rename, so it is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genview.errors import UserError
from genview.store.parts import write_json

ASKED = "asked.json"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one backbone.

    `protocol` is the evaluation's name and version, as in 'knn-1', and `settings` are its options with their
    defaults. `backbone` is 'last' or 'best' of a training, or 'given'. `measures` are names with values in [0, 1],
    in the order of the evaluation. `train` and `test` count images; `size` is their side in pixels.
    """

    protocol: str
    settings: dict[str, Any]
    backbone: str
    measures: tuple[tuple[str, float], ...]
    train: int
    test: int
    size: int
    seed: int
    seconds: float
    device: str

    def write(self, path: Path) -> None:
        """Write to `path`, all or nothing.

        Raises:
            UserError: the disk is full or the folder may not be written.
        """
        measures = [{"name": name, "value": value} for name, value in self.measures]
        write_json(path, {**asdict(self), "measures": measures})

    @staticmethod
    def read(path: Path) -> Evaluated:
        """Read what `write` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            measures = tuple((str(row["name"]), float(row["value"])) for row in content.pop("measures"))
            return Evaluated(**content, measures=measures)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and evaluate again.") from error


def want_results(folder: Path, names: Sequence[str]) -> None:
    """Note in `folder` which results are wanted, in which order; those of other settings stay, and are not shown."""
    write_json(folder / ASKED, list(names))


def read_results(folder: Path, backbone: str) -> list[Evaluated]:
    """Return the wanted results about a backbone that are there, in the order in which they were asked for.

    Raises:
        UserError: a file is damaged.
    """
    try:
        names = [str(name) for name in json.loads((folder / ASKED).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / ASKED} is damaged ({error}). Delete it and evaluate again.") from error
    places = [folder / backbone / f"{name}.json" for name in names]
    return [Evaluated.read(place) for place in places if place.exists()]
