"""A stage is a folder of parts; a part is done when its file exists; a file appears by rename.

Resume, sharding over machines and progress follow from that sentence: nothing else records what is done.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from genview.errors import UserError, writing

Settings = Mapping[str, object]

ABSENT = object()
"""Stands for a setting that is not there; None is a value of its own."""


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that no other process or machine uses; remove it at the end.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    temporary = path.with_name(f".{path.name}.{_writer()}-{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path, *, first: bool = False) -> None:
    """Flush `temporary` to disk and rename it to `path`.

    With `first`, a `path` that another process has made meanwhile stays as it is, where the file system can tell
    (by hard links).
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    if not first:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        temporary.replace(path)


@contextmanager
def appearing(path: Path, *, first: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On failure the temporary file is removed, so `path` is either whole or absent (or what it was before). With
    `first`, what another process has made meanwhile stays; see `settle`.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    with staged(path) as temporary:
        yield temporary
        settle(temporary, path, first=first)


def _writer() -> str:
    """Name this process among all that may share a network file system."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', platform.node())[:40]}-{os.getpid()}"


@contextmanager
def folder_appearing(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success rename it to `path`, on failure remove it.

    Raises:
        UserError: `path` has something in it, the disk is full, or the folder may not be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is not empty. Name a new folder, or delete that one first.")
    temporary = path.with_name(f".{path.name}.{_writer()}-{secrets.token_hex(4)}.part")
    with writing(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing."""
    with appearing(path) as temporary:
        temporary.write_bytes(data)


def write_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what `torch.load(path, weights_only=True)` reads, all or nothing.

    By way of memory: torch's own writer meets a full disk with an error that does not say so.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with appearing(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, all or nothing."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def claim(folder: Path, settings: Settings) -> None:
    """Mark `folder` as the work of `settings`, or check that it already is.

    The settings are kept in `folder/settings.json`. A stage calls this before it looks for finished parts, so
    that parts of two different settings are never mixed.

    Raises:
        UserError: the folder holds the work of other settings (the message shows each difference), or its record
            of them is damaged.
    """
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(settings, sort_keys=True))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete {folder} to make it anew.") from error
    if found != wanted:
        lines = "; ".join(differences(found, wanted))
        raise UserError(
            f"{folder} was made with other settings and would mix two experiments ({lines}). "
            "Choose another --out, put the settings back, or delete that folder to make it anew."
        )


def differences(found: object, wanted: object, path: str = "") -> Iterator[str]:
    """Yield 'path: there X, now Y' for every leaf that differs; X or Y is 'absent' where there is none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(found.get(key, ABSENT), wanted.get(key, ABSENT), inner)
    elif found != wanted:
        there, now = ("absent" if value is ABSENT else json.dumps(value) for value in (found, wanted))
        yield f"{path}: there {there}, now {now}"


def sweep(folder: Path) -> None:
    """Remove what killed runs left half written in `folder`; only where no other process is writing there."""
    for stale in folder.glob(".*.part"):
        stale.unlink(missing_ok=True)
