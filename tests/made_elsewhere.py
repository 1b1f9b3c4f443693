"""Views made elsewhere, held in memory, and an import of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from PIL import Image

from conftest import Painted
from echo import quiet
from genview.generators import Account, ImportSettings, ViewTable, import_views

COUNT = 9
MIRRORED, FLAT = ImportSettings(shard=4), ImportSettings("flat", shard=4)


class Held:
    """Files in memory, by name."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.names, self.contents = list(contents), contents

    def __len__(self) -> int:
        return len(self.names)

    def key(self, i: int) -> str:
        return self.names[i]

    def data(self, i: int) -> bytes:
        return self.contents[self.names[i]]


def view(i: int, kind: str = "png") -> bytes:
    """Return a file of one colour, which tells the number."""
    Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def take(
    folder: Path, found: Held | object, settings: ImportSettings = MIRRORED, source: Painted | None = None
) -> tuple[Account, ViewTable, list[tuple[str, str]]]:
    bad: list[tuple[str, str]] = []
    account = import_views(
        source or Painted(COUNT),
        found,  # type: ignore[arg-type]
        folder,
        settings,
        identity={"from": "here"},
        unreadable=lambda key, reason: bad.append((key, reason)),
        tell=quiet,
    )
    return account, ViewTable(folder), bad


def mirrored(extension: str = ".jpg", kind: str = "jpeg") -> dict[str, bytes]:
    keys = [Painted(COUNT).key(i) for i in range(COUNT)]
    return {PurePosixPath(key).with_suffix(extension).as_posix(): view(i, kind) for i, key in enumerate(keys)}
