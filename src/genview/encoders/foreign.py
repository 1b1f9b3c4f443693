"""Backbones that others trained: their files into timm's networks, which one being told by the shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Size, Tensor
from torch.nn import functional as F

from genview.encoders.backbone import Backbone, BackboneSettings, create_net
from genview.encoders.checkpoint import Checkpoint, read_checkpoint
from genview.encoders.layouts import LayoutName, Root, as_named, locate
from genview.encoders.naming import MMPRETRAIN_VIT
from genview.encoders.strict import COUNTER, Differences, differences, grouped, load_strictly, shapes
from genview.errors import UserError

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
STATISTICS: Mapping[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation that images in [0, 1] are normalised with, under short names."""

NETWORKS = {
    "resnet": (
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnext50_32x4d",
        "resnext101_32x8d",
    ),
    "vit": (
        "vit_small_patch16_224",
        "vit_base_patch16_224",
        "vit_tiny_patch16_224",
        "vit_large_patch16_224",
        "vit_small_patch32_224",
        "vit_base_patch32_224",
        "vit_small_patch8_224",
        "vit_base_patch8_224",
    ),
}
"""The networks of timm that a file is tried against; any other is named by hand."""


HEADS = re.compile(
    r"(fc|heads?|classifier|linear|pooler|proj\w*|predictor|prototypes\w*|decoder\w*|mask_token|queue\w*|optimi[sz]er)(\.|$)"
)
"""What may lie among the weights of a network without its features depending on it."""


@dataclass(frozen=True)
class Hints:
    """How to read a file, as far as it does not tell by itself (None, empty).

    `layout`: whose names it has. `prefix`: what the names of the network begin with. `backbone`, `args`: timm's
    model and its arguments. `stem_stride`: see `BackboneSettings`. `statistics`: mean, deviation of images.
    """

    layout: LayoutName | None = None
    prefix: str | None = None
    backbone: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    stem_stride: Literal[1, 2, 4] | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Foreign:
    """A network out of a file: settings, weights under timm's names, and an account of what was taken and left.

    `left_out` names the other tensors, modules as a whole; `others` the entries of the file that are no tensors;
    `assumed` says in sentences what does not show in a file and was taken for granted.
    """

    settings: BackboneSettings
    state: dict[str, Tensor]
    layout: LayoutName
    root: Root
    left_out: tuple[str, ...]
    others: tuple[str, ...]
    assumed: tuple[str, ...]

    def backbone(self) -> Backbone:
        """Build the backbone, in eval mode."""
        backbone = Backbone(self.settings)
        load_strictly(backbone.net, self.state, f"This file does not fit the backbone '{self.settings.name}'")
        return backbone.eval()

    def described(self) -> tuple[str, ...]:
        """Return lines that say what was recognised, taken, left out and assumed."""
        args = "".join(f" {name}={value}" for name, value in self.settings.args.items())
        entries = f"; entries {', '.join(self.others)}" * bool(self.others)
        return (
            f"Recognised: layout {self.layout}, {self.root}, as timm's {self.settings.name}{args}",
            f"Taken: {len(self.state)} tensors, every one of the network",
            f"Left out: {', '.join(self.left_out) or 'nothing'}{entries}",
            *(f"Assumed: {sentence}" for sentence in self.assumed),
        )


def read_foreign(path: Path, hints: Hints = Hints()) -> Foreign:
    """Read a backbone from a file of mmpretrain, MoCo, DINO, lightly, solo-learn, torchvision, transformers or timm.

    Every tensor of the network must be there and fit, and no other may lie among them; heads, projectors, slow
    copies, queues and optimizers are left out and listed.

    Raises:
        UserError: the file cannot be read safely, holds no such network or several, or does not fit timm's; every
            difference to the nearest network is named.
    """
    file = read_checkpoint(path)
    case = _case(file, hints)
    settings, state = _fitting(case)
    names = {case.root.prefix + part for name in state for part in case.root.naming.of(name)}
    left = [name for name in file.tensors if name not in names]
    numbers = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return Foreign(
        settings,
        numbers,
        case.layout,
        case.root,
        tuple(grouped(left, file.tensors)),
        file.others,
        tuple(_assumptions(settings, case)),
    )


@dataclass(frozen=True)
class _Case:
    """A file, where its network lies, and what was said of it."""

    file: Checkpoint
    layout: LayoutName
    root: Root
    hints: Hints

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The tensors of the network, under their names within it."""
        start = self.root.prefix
        found = {name[len(start) :]: value for name, value in self.file.tensors.items() if name.startswith(start)}
        first = self.root.naming.first
        if self.root.naming.family == "resnet" and found[first].shape[-1] == 3:
            return {**found, first: self._large_kernel(found[first])}
        return found

    @property
    def statistics(self) -> Statistics:
        """Those asked for, else those in the file (mmpretrain's, of pixels up to 255), else ImageNet's."""
        if self.hints.statistics:
            return self.hints.statistics
        return self.told or STATISTICS["imagenet"]

    @property
    def told(self) -> Statistics | None:
        """The mean and deviation of images that the file holds, if it does."""
        found = {
            end: [float(x) / 255 for x in value.flatten()]
            for end in ("mean", "std")
            for name, value in self.file.tensors.items()
            if f".{name}".endswith(f".data_preprocessor.{end}") and value.numel() == 3
        }
        if len(found) < 2:
            return None
        (a, b, c), (d, e, f) = found["mean"], found["std"]
        return (a, b, c), (d, e, f)

    @property
    def twelve_heads(self) -> bool:
        """Whether a ViT-S is MoCo v3's: of its own layout, or of mmpretrain's with the slow copy beside it."""
        beside = any("momentum_encoder." in name for name in self.file.tensors)
        return self.layout == "moco_v3" or (self.root.naming is MMPRETRAIN_VIT and beside)

    def _large_kernel(self, kernel: Tensor) -> Tensor:
        """Put a 3×3 kernel into the middle of timm's 7×7: the same convolution, where it is padded by 1."""
        if self.layout == "solo_learn":
            raise UserError(
                f"{self.file.path} has the 3×3 stem that solo-learn gives ResNets for CIFAR. It pads images by 2 "
                "pixels, which no network of timm's does; its features would come out otherwise, so it is refused."
            )
        if self.hints.stem_stride != 1:
            raise UserError(
                f"{self.file.path} has a 3×3 stem, for small images. How it moves and pads does not show in weights: "
                "if by 1 pixel each, without max-pooling after it, as is usual, say so with --stem-stride 1."
            )
        return F.pad(kernel, (2, 2, 2, 2))


def _case(file: Checkpoint, hints: Hints) -> _Case:
    """Find the network: by the names that timm gives the one that was said, else as its layout lays it out."""
    if hints.backbone and hints.layout in (None, "timm"):
        names = _shapes(hints.backbone, _Args(hints.args), hints.stem_stride or 4)
        if root := as_named(file, names, hints.prefix):
            return _Case(file, "timm", root, hints)
    return _Case(file, *locate(file, hints.layout, hints.prefix), hints)


def _fitting(case: _Case) -> tuple[BackboneSettings, dict[str, Tensor]]:
    """Return the first network whose every weight is there, and its weights under timm's names."""
    names = (case.hints.backbone,) if case.hints.backbone else NETWORKS[case.root.naming.family]
    near: list[tuple[Differences, str]] = []
    for name in names:
        settings = _settings(name, case)
        wanted = _shapes(settings.name, _Args(settings.args), settings.stem_stride)
        state = case.root.naming.out_of(case.own, wanted)
        state |= {n: torch.tensor(0) for n in wanted if n.endswith(COUNTER) and n not in state}
        places = {part for n in wanted for part in case.root.naming.of(n)}
        alien = {n: value for n, value in case.own.items() if n not in places and not HEADS.match(n)}
        unlike = replace(
            differences(wanted, shapes(state)), unexpected=tuple(alien), found=frozenset([*state, *alien])
        )
        if not unlike:
            return settings, state
        near.append((unlike, name))
    unlike, name = min(near, key=lambda pair: len(pair[0]))
    which = f"is not timm's '{name}'" if case.hints.backbone else f"is no network known here; '{name}' is the nearest"
    raise UserError(
        f"{case.file.path} (layout {case.layout}, {case.root}) {which}:\n{unlike}\n"
        "Name the one it is with --backbone, and its arguments with --arg."
    )


def _settings(name: str, case: _Case) -> BackboneSettings:
    args = dict[str, Any]()
    if case.root.naming.family == "vit":
        args = _image_size(name, case)
        if case.twelve_heads and name.startswith("vit_small"):
            args["num_heads"] = 12
    return BackboneSettings(name, {**args, **case.hints.args}, case.hints.stem_stride or 4, *case.statistics)


def _image_size(name: str, case: _Case) -> dict[str, Any]:
    """Return the side of images where it is not the usual one: the patches, a square, have most of the positions."""
    patch = case.own[case.root.naming.first].shape[-1]
    positions = case.own.get(case.root.naming.of("pos_embed")[0])
    size = 224 if positions is None or positions.ndim != 3 else isqrt(positions.shape[1]) * patch
    return {} if name.endswith(f"_{size}") else {"img_size": size}


def _assumptions(settings: BackboneSettings, case: _Case) -> Iterator[str]:
    if case.root.naming.family == "vit" and "num_heads" not in case.hints.args and "small" in settings.name:
        heads = settings.args.get("num_heads", 6)
        why = "as MoCo v3's ViT-S has" if heads == 12 else "as timm's ViT-S has; MoCo v3's has 12"
        yield f"{heads} heads, {why} (--arg num_heads=NUMBER)"
    if case.root.naming.family == "resnet" and case.hints.stem_stride is None:
        yield "the stem for ImageNet, of stride 4 with max-pooling (--stem-stride)"
    if case.hints.statistics is None and case.told is None:
        more = "; GenView's authors trained with CLIP's" * (case.layout == "mmpretrain")
        yield f"images normalised with ImageNet's mean and deviation{more} (--statistics)"


class _Args(dict[str, Any]):
    """Arguments that can be a key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@cache
def _shapes(name: str, args: _Args, stem_stride: Literal[1, 2, 4]) -> dict[str, Size]:
    """Return the shapes of a network's weights, without the memory for them."""
    with torch.device("meta"):
        return shapes(create_net(BackboneSettings(name, args, stem_stride)).state_dict())
