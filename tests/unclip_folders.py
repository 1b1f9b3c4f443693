"""Small Stable unCLIPs in folders of diffusers' layout, each with its pipeline and conditions that suit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImg2ImgPipeline
from torch import Tensor

from genview.generators import Unclip, UnclipSettings
from tiny import tiny_unclip

FLOAT32 = UnclipSettings(steps=4, save_size=32, precision="float32")


@dataclass(frozen=True)
class Saved:
    """A pipeline of diffusers, the folder it was saved to, and conditions that suit it."""

    pipeline: Any
    folder: Path
    condition: Tensor

    def load(self, settings: UnclipSettings = FLOAT32) -> Unclip:
        return replace(settings, weights=str(self.folder)).load("cpu")


def saved_unclip(folder: Path, variant: str) -> Saved:
    """Like the H variant (embeddings left as they are) and the L variant (normalised), in small."""
    torch.manual_seed(0)
    width = {"h": 32, "l": 24}[variant]
    folder = folder / f"unclip-{variant}"
    tiny_unclip(folder, width, identity=variant == "h")
    pipeline: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return Saved(pipeline, folder, torch.randn(4, width))
