"""Export: write, read back as others would, compare, and only then let the folder appear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from genview.export.card import Facts, card
from genview.export.target import Agreement, Source, Target, agreement
from genview.export.to_onnx import ToOnnx
from genview.export.to_timm import ToTimm
from genview.export.to_torchvision import ToTorchvision
from genview.export.to_transformers import ToTransformers
from genview.store import folder_appearing, write_bytes

TargetName = Literal["timm", "torchvision", "huggingface", "onnx"]
TARGETS: Mapping[TargetName, Target] = {
    "timm": ToTimm(),
    "torchvision": ToTorchvision(),
    "huggingface": ToTransformers(),
    "onnx": ToOnnx(),
}


def export_to(target: Target, source: Source, facts: Facts, out: Path) -> Agreement:
    """Write a backbone and its card to the folder `out`, which appears whole and checked, or not at all.

    Raises:
        UserError: `out` is not empty, the layout has no place for this network, a package is missing, what was
            written computes something else, or the disk is full.
    """
    with folder_appearing(out) as folder:
        target.write(source, folder)
        agreed = agreement(source, target.read(source, folder))
        write_bytes(folder / "README.md", card(source, target, facts, agreed).encode())
    return agreed
