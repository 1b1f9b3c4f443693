"""Reading files of weights that others wrote, without running what may be hidden in them."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genview.errors import UserError

DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, AssertionError),
    struct.error,
)
"""What torch raises, besides pickle's error, on bytes that it did not write."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file under dotted names, such as state_dict.module.queue, and the names of what else it holds."""

    path: Path
    tensors: dict[str, Tensor]
    others: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file, or what `torch.save` wrote.

    Of the latter only tensors, numbers, texts and their containers are read (`weights_only`), and the plain record
    of options (argparse.Namespace) that many programs add.

    Raises:
        UserError: there is no such file, it is damaged, holds no tensor, or holds objects that may run code.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    leaves = list(_leaves(content)) if isinstance(content, Mapping) else []
    tensors = {name: value for name, value in leaves if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights: it should be a dictionary of tensors, perhaps within another.")
    others = dict.fromkeys(name.split(".")[0] for name, value in leaves if not isinstance(value, Tensor))
    return Checkpoint(path, tensors, tuple(others))


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or it is damaged: {error}.") from error


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(_refused(path, found[1])) from error
        raise UserError(f"{path} was not written by torch.save, or it is damaged: {_first(error)}.") from error
    except DAMAGED as error:
        raise UserError(f"{path} was not written by torch.save, or it is damaged: {_first(error)}.") from error


def _refused(path: Path, name: str) -> str:
    return (
        f"{path} holds not only weights but an object of {name}, and reading such objects can run code, so it is not "
        "read. If you trust whoever made the file, convert it once, where that library is installed and nothing can "
        f"be lost: python -c \"import torch; c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
        "torch.save(c.get('state_dict', c.get('model', c)), 'weights.pth')\", and name weights.pth here."
    )


def _first(error: Exception) -> str:
    """Return the beginning of what torch says, without its advice to read the file in the way that can run code."""
    said = str(error).rpartition("WeightsUnpickler error:")[2]
    said = " ".join(
        re.sub(r"In PyTorch 2\.6, we changed.*?trusted source\.|Check the documentation.*", "", said).split()
    )
    if isinstance(error, LookupError):  # its text is a key alone
        return f"{type(error).__name__} {said}"[:200]
    return said.rstrip(".")[:200] or type(error).__name__


def _leaves(content: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value
