"""Images in tar and zip files, read at random without unpacking."""

from __future__ import annotations

import bisect
import glob
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from PIL import Image

from genview.errors import UserError
from genview.images.combine import limited
from genview.images.decode import decode
from genview.images.folder import EXTENSIONS, existing
from genview.images.source import ImageSource, UnreadableImage
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

    def build(self) -> ImageSource:
        """Index the archives.

        Raises:
            UserError: an archive is missing or damaged, or there is no image in them.
        """
        return limited(Archives(self.paths, self.within), self.limit)


class Member(NamedTuple):
    """A member of an archive: its name and, in a tar, where its data lie."""

    name: str
    offset: int
    length: int


class Archives:
    """Images of archives, in the order of the files and of the members in them.

    The index is made once. Zip files are opened once a process, as their handles must not be shared.
    """

    def __init__(self, paths: tuple[str, ...], within: str = "") -> None:
        self.files = [file for path in paths for file in _files(path)]
        prefix = within.strip("/") + "/" if within.strip("/") else ""
        self._members: list[Member] = []
        self._starts: list[int] = []
        for file in self.files:
            self._starts.append(len(self._members))
            self._members += [m for m in _members(file) if m.name.startswith(prefix) and _is_image(m.name)]
        if not self._members:
            raise UserError(f"There is no image in {', '.join(paths)}{f' below {within}' if within else ''}.")
        if len({m.name for m in self._members}) < len(self._members):
            raise UserError(
                f"Two members of {', '.join(paths)} have one name; keys must be unique. Use kind: together."
            )
        names = sorted({PurePosixPath(m.name).parent.name for m in self._members})
        self.classes: tuple[str, ...] = tuple(names) if len(names) > 1 else ()
        self._open: dict[tuple[int, str], zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return len(self._members)

    def key(self, i: int) -> str:
        """Name of the member."""
        return self._members[i].name

    def image(self, i: int) -> Image.Image:
        """Read and decode."""
        file = self.files[bisect.bisect_right(self._starts, i) - 1]
        try:
            return decode(self._read(file, self._members[i]))
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise UnreadableImage(f"cannot be read from {file.name}: {error}") from error

    def label(self, i: int) -> int | None:
        """Index of the name of the member's folder."""
        return self.classes.index(PurePosixPath(self._members[i].name).parent.name) if self.classes else None

    def _read(self, file: Path, member: Member) -> bytes:
        if file.suffix != ".zip":
            return read_at(file, member.offset, member.length)
        place = (os.getpid(), str(file))
        if place not in self._open:
            self._open[place] = zipfile.ZipFile(file)
        return self._open[place].read(member.name)


def _files(path: str) -> list[Path]:
    if Path(path).is_dir():
        found = [p for p in Path(path).iterdir() if p.suffix in (".tar", ".zip")]
    else:
        found = [Path(p) for p in glob.glob(path)]  # noqa: PTH207 - the pattern may be absolute
    if not found:
        existing(Path(path).parent)
        raise UserError(f"No tar or zip file fits '{path}'.")
    return sorted(found)


def _members(file: Path) -> list[Member]:
    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                return [Member(info.filename, 0, info.file_size) for info in archive.infolist()]
        with tarfile.open(file, "r:") as tar:
            return [Member(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} cannot be read as a {'zip' if file.suffix == '.zip' else 'plain tar'} file: {error}. "
            "Compressed tar files have no random access: unpack them once, or make them plain."
        ) from error


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
