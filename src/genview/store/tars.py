"""Images in plain, uncompressed tar shards, read at random by offset (and in order by webdataset)."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from genview.store.parts import appearing, settle, staged

Members = Iterable[tuple[str, bytes]]
Places = list[tuple[int, int]]


class Tar(NamedTuple):
    """A tar that was written: its file name, its size in bytes, and (offset, length) of each member's data."""

    name: str
    size: int
    places: Places


def write_tar(path: Path, members: Members) -> Places:
    """Write (name, data) members to the tar `path`, all or nothing; return (offset, length) of each one's data.

    Times, owners and modes are fixed, so equal members give equal bytes.
    """
    with appearing(path) as temporary:
        return _write(temporary, members)


def write_named_tar(folder: Path, stem: str, members: Members) -> Tar:
    """Write members as `write_tar` does to `folder`/STEM-DIGEST.tar, where DIGEST is taken of the tar's bytes.

    So two processes that make one shard in other bytes never write into each other's file.
    """
    with staged(folder / f"{stem}.tar") as temporary:
        places = _write(temporary, members)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        size = temporary.stat().st_size
        name = f"{stem}-{digest}.tar"
        settle(temporary, folder / name)
    return Tar(name, size, places)


def _write(path: Path, members: Members) -> Places:
    places = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
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
