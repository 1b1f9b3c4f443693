"""Where in a file of others' weights the trained network lies: layouts, told by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from genview.encoders.checkpoint import Checkpoint
from genview.encoders.naming import (
    MMPRETRAIN_VIT,
    NAMINGS,
    RESNET,
    SEQUENTIAL,
    TIMM_ANY,
    TIMM_VIT,
    TORCHVISION_VIT,
    TRANSFORMERS_RESNET,
    TRANSFORMERS_VIT,
    TRANSFORMERS_VIT_5,
    Naming,
)
from genview.errors import UserError

LayoutName = Literal[
    "moco_v2", "moco_v3", "dino", "lightly", "solo_learn", "mmpretrain", "timm", "torchvision", "transformers"
]
SLOW = re.compile(r"(^|[._])(momentum|target|teacher|ema|encoder_k|key)([._]|$)")
"""What libraries call the slow copy of a network, which is not what they evaluate."""


@dataclass(frozen=True)
class Root:
    """A network in a file: what its names begin with, and how they go on."""

    prefix: str
    naming: Naming

    @property
    def slow(self) -> bool:
        """Whether it is the slow copy of another."""
        return SLOW.search(self.prefix) is not None

    def __str__(self) -> str:
        return f"'{self.prefix}' ({self.naming.family} as in {self.naming.name})"


@dataclass(frozen=True)
class Layout:
    """How a library lays out a file of training.

    `ends` are the last parts of the prefixes of its networks, any where empty; a slow copy is taken only where there
    is no other. `beside` are names of which one shows that a file is of this layout; none is needed where empty.
    """

    name: LayoutName
    namings: tuple[Naming, ...]
    ends: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def admits(self, root: Root) -> bool:
        """Whether a network can be what this layout trains."""
        ends = not self.ends or any(f".{root.prefix}".endswith(f".{end}.") for end in self.ends)
        return ends and root.naming in self.namings

    def shows(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is of this layout, if it has a network that this admits."""
        return not self.beside or any(part in self.beside for name in names for part in name.split("."))


LAYOUTS = (
    Layout("moco_v2", (RESNET,), ("encoder_q", "encoder_k")),
    Layout("moco_v3", (RESNET, TIMM_VIT), ("base_encoder", "momentum_encoder")),
    Layout("dino", (RESNET, TIMM_VIT), ("teacher.backbone",)),
    Layout("lightly", (SEQUENTIAL,)),
    Layout("solo_learn", (RESNET, TIMM_VIT), ("backbone", "encoder"), ("momentum_backbone", "classifier")),
    Layout("mmpretrain", (RESNET, MMPRETRAIN_VIT), ("backbone",), ("neck", "head", "data_preprocessor")),
    Layout("timm", (TIMM_VIT, RESNET)),
    Layout("torchvision", (RESNET, TORCHVISION_VIT)),
    Layout("transformers", (TRANSFORMERS_RESNET, TRANSFORMERS_VIT, TRANSFORMERS_VIT_5)),
    Layout("mmpretrain", (MMPRETRAIN_VIT,)),
)
"""The first that a file shows is taken. A ResNet of torchvision's has timm's names, so it counts as timm's."""

NAMES: tuple[LayoutName, ...] = get_args(LayoutName)


def locate(file: Checkpoint, layout: LayoutName | None = None, prefix: str | None = None) -> tuple[LayoutName, Root]:
    """Find the network to take from a file.

    Args:
        file: what was read.
        layout: the layout it is of; told by its names where None.
        prefix: what the names of the network's weights begin with, where it holds several.

    Raises:
        UserError: it holds no network that is known, or none of that layout or prefix, or several.
    """
    roots = list(_roots(file))
    if not roots:
        raise UserError(
            f"{file.path} holds no ResNet or Vision Transformer by the names of any layout known here "
            f"({', '.join(NAMES)}). It has: {_listed(file.tensors)}."
        )
    chosen = [root for root in roots if prefix is None or root.prefix == _ended(prefix)]
    for known in LAYOUTS:
        admitted = [root for root in chosen if known.admits(root)]
        if layout is None and not known.shows(file.tensors):
            continue
        if layout in (None, known.name) and admitted:
            return known.name, _only(file, admitted)
    wanted = f"layout {layout}" * (layout is not None) + f" prefix '{prefix}'" * (prefix is not None)
    raise UserError(f"{file.path} holds no network of {wanted.strip()}. It holds: {'; '.join(map(str, roots))}.")


def as_named(file: Checkpoint, names: Collection[str], prefix: str | None = None) -> Root | None:
    """Return where a network of timm's with these names lies in a file, if only its own names can tell it.

    None where it is a plain ResNet or ViT, which `locate` finds in every layout, or none of the names is there.
    """
    usual = any(all(naming.of(name) for name in names) for naming in (RESNET, TIMM_VIT))
    start = _ended(prefix or "")
    return Root(start, TIMM_ANY) if not usual and any(start + name in file.tensors for name in names) else None


def _roots(file: Checkpoint) -> Iterator[Root]:
    for name, value in file.tensors.items():
        for naming in NAMINGS:
            prefix = name.removesuffix(naming.first)
            here = f".{name}".endswith(f".{naming.first}") and f"{prefix}{naming.also}" in file.tensors
            if here and value.ndim == 4 and value.shape[1] == 3:
                yield Root(prefix, naming)


def _only(file: Checkpoint, roots: list[Root]) -> Root:
    """Return the only network, or the only one that is no slow copy."""
    quick = [root for root in roots if not root.slow] or roots
    if len(quick) > 1:
        raise UserError(
            f"{file.path} holds several networks: {'; '.join(map(str, roots))}. Say which one with --prefix."
        )
    return quick[0]


def _ended(prefix: str) -> str:
    return f"{prefix.rstrip('.')}." if prefix else ""


def _listed(names: Iterable[str], most: int = 8) -> str:
    heads = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return ", ".join(heads[:most]) + f" and {len(heads) - most} more" * (len(heads) > most)
