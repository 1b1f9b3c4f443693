"""Views that exist already, taken into the store that `generate` would have written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from genview.errors import UserError
from genview.generators.generate import finish
from genview.generators.matching import Layout, Matches, matches
from genview.generators.plan import Columns, Plan, Tell, plan_part
from genview.generators.planning import PART, planned_already, written
from genview.generators.shard import FAILED, MADE, write_images
from genview.generators.views import ViewTable
from genview.images import Archives, Folder, ImageFiles, ImageSource, UnreadableImage, decode
from genview.images.batches import Unreadable
from genview.store import write_json, write_table

ACCOUNT = "import.json"
READERS = 2
"""Threads that read and decode."""
AHEAD = 16
"""Files that are read before the first of them is written."""
NO_SEED = -1


@dataclass(frozen=True)
class ImportSettings:
    """How files and images belong together; see `matches`. A shard holds `shard` views."""

    layout: Layout = "mirrored"
    mapping: Path | None = None
    shard: int = 512

    def check(self) -> None:
        """Check what belongs together.

        Raises:
            UserError: the shard is empty, or there is a mapping without its layout, or the layout without one.
        """
        if self.shard < 1:
            raise UserError(f"A shard holds at least 1 view, not {self.shard}.")
        if (self.layout == "mapping") != (self.mapping is not None):
            raise UserError("A mapping (a CSV of file,key) is given with layout 'mapping', and with no other layout.")


@dataclass(frozen=True)
class Account:
    """What became of an import.

    `files` were found, of which `matched` views were planned (a file of a mapping can be several), `stray` files
    belong to no image, and `unreadable` views were left out; `bare` images have no view. `absent` rows of the
    mapping name a file that is not there.
    """

    files: int
    matched: int
    stray: int
    bare: int
    absent: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        counts = {
            "files without an image": self.stray,
            "images without a view": self.bare,
            "rows of the mapping whose file is not there": self.absent,
            "views that cannot be read": self.unreadable,
        }
        more = [f"{what}: {count:,}" for what, count in counts.items() if count]
        return "; ".join([f"views matched: {self.matched:,} (files: {self.files:,})", *more])


def files_in(folder: Path, keep: Path | None = None, tell: Tell = lambda *_: None) -> ImageFiles:
    """Return the image files in a folder, or in the tar and zip files that lie in it; also those of one archive.

    Raises:
        UserError: there is no such folder or archive, or no image in it.
    """
    archived = (".tar", ".zip")
    if folder.is_file() or (folder.is_dir() and any(path.suffix.lower() in archived for path in folder.iterdir())):
        return Archives((str(folder),))
    return Folder(folder, "none", keep, tell)


def imported(folder: Path) -> bool:
    """Whether a folder of views was filled, or begun to be, by `import_views`."""
    return (folder / ACCOUNT).exists()


def import_views(
    source: ImageSource,
    found: ImageFiles,
    folder: Path,
    settings: ImportSettings,
    *,
    identity: Mapping[str, object],
    unreadable: Unreadable,
    tell: Tell,
) -> Account:
    """Take finished views into the store `folder`, as they are, and continue where an earlier call stopped.

    Every file is decoded once to see that it can be; one that cannot has status 'failed' and is named to
    `unreadable`. The level is that of the mapping or `noise.UNKNOWN`; seed (−1) and guidance
    (NaN) are not known. Memory takes some 75 bytes a view, and holds the few files that are being checked.

    Args:
        source: the images that the views belong to.
        found: the views; see `files_in`.
        folder: where `ViewTable` will find them.
        settings: how views and images belong together.
        identity: what else tells this import from another one.
        unreadable: is told key and reason of a file that cannot be read.
        tell: is told the progress.

    Raises:
        UserError: see `matches`; the folder holds other views, or the files have changed since the import began.
    """
    settings.check()
    plan = _plan(source, found, folder, settings, identity, tell)
    finish(plan, _here(found, unreadable), tell)
    return replace(_account(folder), unreadable=ViewTable(folder).failed)


def _plan(
    source: ImageSource,
    found: ImageFiles,
    folder: Path,
    settings: ImportSettings,
    identity: Mapping[str, object],
    tell: Tell,
) -> Plan:
    """Write which file becomes which view, or return the plan that is there.

    In the plan, each view counts as an image with one draw.
    """
    chosen = {"layout": settings.layout, "mapping": _digest(settings.mapping), "shard": settings.shard}
    wanted = {**identity, "imported": chosen, "images_found": len(source), "files_found": len(found)}
    if planned_already(folder, wanted):
        return Plan.open(folder)
    matched = matches(source, found, settings.layout, settings.mapping, tell)
    plan = Plan(
        folder=folder,
        analysis="",
        parts=(("", len(matched.file)),),
        draws=1,
        images_a_shard=settings.shard,
        shards_a_part=max(1, PART // settings.shard),
        seed=0,
        format="as found",
        scores=None,
        filter=None,
    )
    size = plan.shards_a_part * plan.images_a_shard
    for number, first in enumerate(range(0, len(matched.file), size)):
        write_table(plan_part(folder, number), _rows(source, found, matched, slice(first, first + size)))
    account = Account(len(found), len(matched.file), matched.stray, matched.bare, matched.absent)
    write_json(folder / ACCOUNT, asdict(account))
    return written(plan, wanted)


def _digest(mapping: Path | None) -> str | None:
    if mapping is None:
        return None
    try:
        with mapping.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(f"The mapping {mapping} cannot be read: {error.strerror}.") from error


def _rows(source: ImageSource, found: ImageFiles, matched: Matches, cut: slice) -> Columns:
    count = len(matched.file[cut])
    return {
        "key": np.array([source.key(int(i)) for i in matched.image[cut]], dtype=object),
        "draw": matched.draw[cut],
        "level": matched.level[cut],
        "seed": np.full(count, NO_SEED, dtype=np.int64),
        "guidance": np.full(count, np.nan, dtype=np.float32),
        "place": matched.file[cut],
        "file": np.array([found.key(int(i)) for i in matched.file[cut]], dtype=object),
    }


def _account(folder: Path) -> Account:
    path = folder / ACCOUNT
    try:
        return Account(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete {folder} and import anew.") from error


def _here(found: ImageFiles, unreadable: Unreadable) -> Callable[[Plan, list[int], Tell], None]:
    """Return a launch, see `generate`, that takes in one shard after another."""

    def launch(plan: Plan, shards: list[int], tell: Tell) -> None:
        left, done = set(shards), plan.views - sum(len(plan.images_of(shard)) for shard in shards)
        for shard, rows in enumerate(plan.planned()):
            if shard in left:
                _take(plan.sidecar(shard), rows, found, unreadable)
                done += len(rows["key"])
                tell("import", done, plan.views, "")

    return launch


def _take(part: Path, rows: Columns, found: ImageFiles, unreadable: Unreadable) -> None:
    """Take in one shard: tar, then sidecar."""
    status = np.full(len(rows["key"]), FAILED, dtype=object)

    def images() -> Iterator[tuple[int, str, bytes]]:
        for row, data in enumerate(_checked(found, rows)):
            name = str(rows["file"][row])
            if isinstance(data, UnreadableImage):
                unreadable(name, str(data))
            else:
                status[row] = MADE
                yield row, PurePosixPath(name).suffix[1:].lower(), data

    placed = write_images(part, rows, images())
    unknown = np.full(len(status), np.nan, dtype=np.float32)
    planned = {name: rows[name] for name in ("key", "draw", "level", "seed", "guidance")}
    columns = {**planned, "status": status, **placed, "score": unknown, "diversity": unknown, "file": rows["file"]}
    write_table(part, columns, first=True)


def _checked(found: ImageFiles, rows: Columns) -> Iterator[bytes | UnreadableImage]:
    """Yield the bytes of each row's file that decodes, or why it does not."""

    def read(row: int) -> bytes | UnreadableImage:
        place, name = int(rows["place"][row]), rows["file"][row]
        if found.key(place) != name:
            raise UserError(f"The files have changed since their import began: '{name}' is now '{found.key(place)}'.")
        try:
            decode(data := found.data(place))
        except UnreadableImage as reason:
            return reason
        return data

    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(rows["key"]), AHEAD):
            yield from pool.map(read, range(first, min(first + AHEAD, len(rows["key"]))))
