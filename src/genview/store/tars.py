"""Images in plain, uncompressed tar shards, read at random by offset (and in order by webdataset)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from genview.store.parts import appearing


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> list[tuple[int, int]]:
    """Write (name, data) members to the tar `path`, all or nothing; return (offset, length) of each one's data.

    Times, owners and modes are fixed, so equal members give equal bytes.
    """
    places = []
    with appearing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            places.append((tar.offset - _padded(len(data)), len(data)))
    return places


def _padded(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Read one member's data; opens the file anew, so it is safe in any number of threads and processes."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
