"""What lets an evaluation continue after a kill, and refuse to where something else was evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from genview.errors import UserError
from genview.images import ImageSource
from genview.store import write_json

Row = tuple[str, float]


def kept(path: Path, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Return the rows (name, value) kept in `path`; where there is no such file, measure them and keep them.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        write_json(path, list(measure()))
    try:
        return [(str(name), float(value)) for name, value in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to measure it anew.") from error


def digest_of_weights(module: nn.Module) -> str:
    """Name the weights and buffers of a module."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_images(source: ImageSource) -> str:
    """Name a source by its keys and labels, in order; pixels are not looked at."""
    digest = hashlib.blake2b(digest_size=8)
    for i in range(len(source)):
        digest.update(f"{source.key(i)}\0{source.label(i)}\n".encode())
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """Name the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
