"""What a source lists, kept in a folder so that it is looked for once: mapped into memory, not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from genview.errors import UserError
from genview.store import claim, read_mapped, write_json, write_mapped

Listed = tuple[Sequence[str], np.ndarray, tuple[str, ...]]
"""Keys, labels (int32, as many as keys, or none) and names of the classes."""


class Index:
    """Keys and labels of a source: some tens of bytes an image, or none where they are mapped from a folder.

    Pickled, a mapped index is its folder's name, which the worker that unpickles it maps again.
    """

    def __init__(
        self, keys: pa.Array, labels: np.ndarray, classes: tuple[str, ...], folder: Path | None = None
    ) -> None:
        self._keys, self._labels, self._folder = keys, labels, folder
        self.classes = classes

    @staticmethod
    def of(listed: Listed) -> Index:
        """Return an index in memory."""
        keys, labels, classes = listed
        return Index(pa.array(keys, pa.string()), labels, classes)

    @staticmethod
    def kept(folder: Path, identity: Mapping[str, object], scan: Callable[[], Listed]) -> Index:
        """Return the index in `folder`; the first time, `scan` lists what it is to hold.

        Raises:
            UserError: `folder` holds the index of another `identity`, or is damaged.
        """
        listed = None if (folder / "index.json").exists() else scan()
        claim(folder, identity)  # after the scan: one that fails binds no folder
        if listed is not None:
            _write(folder, listed)
        return Index.opened(folder)

    @staticmethod
    def opened(folder: Path) -> Index:
        """Map the index that `kept` wrote.

        Raises:
            UserError: it is damaged or was deleted.
        """
        record = folder / "index.json"
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            table, classes = folder / Path(found["table"]).name, tuple(found["classes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record} is damaged ({error}). Delete {folder} and run the command again.") from error
        columns = read_mapped(table)
        labels = columns["label"].to_numpy() if classes else np.empty(0, np.int32)
        return Index(columns["key"], labels, classes, folder)

    def __reduce__(self) -> tuple[object, ...]:
        if self._folder is not None:
            return Index.opened, (self._folder,)
        return Index, (self._keys, self._labels, self.classes)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """Key of image `i`."""
        key: str = self._keys[int(i)].as_py()
        return key

    def label(self, i: int) -> int | None:
        """Label of image `i`, or None where there are no classes."""
        return int(self._labels[i]) if self.classes else None


def _write(folder: Path, listed: Listed) -> None:
    """Write the table under a name of its contents and then the record that names it.

    Processes that scan a folder at once, while it changes, so leave a pair that belongs together.
    """
    keys, labels, classes = listed
    digest = hashlib.blake2b("\0".join([*classes, "", *keys]).encode(), digest_size=8).hexdigest()
    columns: dict[str, np.ndarray | Sequence[str]] = {"key": keys}
    if classes:
        columns["label"] = labels
    write_mapped(folder / f"keys-{digest}.arrow", columns)
    write_json(folder / "index.json", {"table": f"keys-{digest}.arrow", "classes": classes})
