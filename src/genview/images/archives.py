"""Images in tar and zip files, read at random without unpacking."""

from __future__ import annotations

import bisect
import glob
import os
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from PIL import Image

from genview.errors import UserError, nearest
from genview.images.combine import limited
from genview.images.decode import ImageFile
from genview.images.folder import EXTENSIONS, existing
from genview.images.source import ImageSource, Tell, UnreadableImage, checked, silent
from genview.store import read_at


@dataclass(frozen=True)
class ArchiveImages:
    """`paths` names tar and zip files, folders of them, or patterns such as 'data/train-*.tar'.

    `within` keeps only members below a folder of the archive. The name of a member's folder is its class, where
    there are at least two.
    """

    paths: tuple[str, ...]
    kind: Literal["archives"] = "archives"
    within: str = ""
    limit: int | None = None

    def build(self, keep: Path | None = None, tell: Tell = silent) -> ImageSource:  # noqa: ARG002
        """Index the archives.

        Raises:
            UserError: an archive is missing or damaged, or there is no image in them.
        """
        return limited(Archives(self.paths, self.within), self.limit)


class Member(NamedTuple):
    """A member of an archive: its key, its name as stored and, in a tar, where its data lie."""

    key: str
    name: str
    offset: int
    length: int


class Archives:
    """Images of archives, in the order of the files and of the members in them.

    The index is made once. Zip files are opened once a process, as their handles must not be shared.
    """

    def __init__(self, paths: tuple[str, ...], within: str = "") -> None:
        self.files = [file for path in paths for file in _files(path)]
        prefix = _key(within + "/") + "/" if within.strip("./") else ""
        self._members: list[Member] = []
        self._starts: list[int] = []
        for file in self.files:
            self._starts.append(len(self._members))
            self._members += [m for m in _members(file) if m.key.startswith(prefix) and _is_image(m.key)]
        if not self._members:
            raise UserError(f"There is no image in {', '.join(paths)}{f' below {within}' if within else ''}.")
        checked([m.key for m in self._members], ", ".join(paths))
        folders = [PurePosixPath(m.key).parent.name for m in self._members]
        names = sorted(set(folders))
        self.classes: tuple[str, ...] = tuple(names) if len(names) > 1 and "" not in names else ()
        index = {name: i for i, name in enumerate(self.classes)}
        self._labels = [index[folder] for folder in folders] if index else []
        self._open: dict[tuple[int, str], zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return len(self._members)

    def key(self, i: int) -> str:
        """Name of the member, without a leading './'."""
        return self._members[i].key

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        return self.opened(i).image()

    def opened(self, i: int) -> ImageFile:
        """Read, not yet decode."""
        return ImageFile(self.data(i))

    def data(self, i: int) -> bytes:
        """Read."""
        file = self.files[bisect.bisect_right(self._starts, i) - 1]
        try:
            return self._read(file, self._members[i])
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise UnreadableImage(f"cannot be read from {file.name}: {error}") from error

    def label(self, i: int) -> int | None:
        """Index of the name of the member's folder."""
        return self._labels[i] if self._labels else None

    def _read(self, file: Path, member: Member) -> bytes:
        if not _is_zip(file):
            return read_at(file, member.offset, member.length)
        place = (os.getpid(), str(file))
        if place not in self._open:
            self._open[place] = zipfile.ZipFile(file)
        return self._open[place].read(member.name)


def _files(path: str) -> list[Path]:
    place = Path(path)
    if place.is_file():  # also where the name looks like a pattern
        return [place]
    if place.is_dir():
        found = [p for p in place.iterdir() if p.suffix.lower() in (".tar", ".zip") and p.name[0] != "."]
        if not found:
            raise UserError(f"There is no tar or zip file in {path}. For loose images use kind: folder.")
        return sorted(found)
    found = [Path(p) for p in glob.glob(path)]  # noqa: PTH207 - the pattern may be absolute
    if not found:
        near = nearest(place.name, [p.name for p in existing(place.parent).iterdir()])
        raise UserError(f"No tar or zip file fits '{path}'.{near}")
    return sorted(found)


def _members(file: Path) -> list[Member]:
    try:
        if _is_zip(file):
            with zipfile.ZipFile(file) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
            return [Member(_key(name), name, 0, 0) for name in names]
        with tarfile.open(file, "r:") as tar:
            members = [Member(_key(m.name), m.name, m.offset_data, m.size) for m in tar if m.isfile()]
        # tarfile takes a damaged header for the end; the true end is followed by zeros, or by nothing.
        if read_at(file, tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
        return members
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} cannot be read as a {'zip' if _is_zip(file) else 'plain tar'} file: {error}. "
            "Compressed tar files have no random access: unpack them once, or make them plain."
        ) from error


def _key(name: str) -> str:
    return PurePosixPath(name).as_posix().lstrip("/")


def _is_zip(file: Path) -> bool:
    return file.suffix.lower() == ".zip"


def _is_image(key: str) -> bool:
    path = PurePosixPath(key)
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)
