"""Faster R-CNN and Mask R-CNN with a feature pyramid, torchvision's, on a pretrained backbone."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from genview.encoders import Backbone
from genview.errors import UserError
from genview.seeds import seed_of

Norms = Literal["trained", "frozen"]
Precision = Literal["auto", "float32", "bfloat16"]
STAGES = 4
PROBE = 64
"""Side in pixels of the image that tells what a backbone's stages give."""


class Shape(Protocol):
    """What settings say of a detector; see `Detection`."""

    @property
    def masks(self) -> bool: ...  # noqa: D102
    @property
    def norms(self) -> Norms: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def short(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def longest(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) on the four stages of a backbone; a fifth map is the fourth, halved.

    Images B×3×H×W, normalised, → maps B×`out_channels`×H/s×W/s by level, s = 4 … 64 where the backbone has the usual
    stem. With `norms` 'trained' the backbone's BatchNorm learns and the pyramid has BatchNorm too; 'frozen' keeps
    statistics and scales as they are, and the pyramid has none.

    Only here is anything computed in bfloat16, and the maps are float32 again: torchvision computes boxes in the
    precision of the maps, and bfloat16 would round a place of 1000 px to 4.

    Raises:
        UserError: the backbone has no four stages whose maps halve from one to the next.
    """

    def __init__(self, backbone: Backbone, width: int, norms: Norms, precision: Precision = "auto") -> None:
        super().__init__()
        self.net: Any = backbone.net
        self.out_channels, self.norms, self.precision = width, norms, precision
        norm = nn.BatchNorm2d if norms == "trained" else None
        self.fpn = FeaturePyramidNetwork(channels(backbone), width, LastLevelMaxPool(), norm)
        if norms == "frozen":
            for part in self._normalising():
                part.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps by level, the finest first."""
        auto = self.precision == "auto" and x.is_cuda and torch.cuda.is_bf16_supported()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=auto or self.precision == "bfloat16"):
            found = self.fpn(OrderedDict((str(n), y) for n, y in enumerate(stages(self.net, x))))
        return {level: y.float() for level, y in found.items()}

    def train(self, mode: bool = True) -> Pyramid:
        """Frozen norms stay in eval mode."""
        super().train(mode)
        if self.norms == "frozen":
            for part in self._normalising():
                part.eval()
        return self

    def _normalising(self) -> list[_BatchNorm]:
        return [part for part in self.net.modules() if isinstance(part, _BatchNorm)]


def stages(net: Any, x: Tensor) -> list[Tensor]:
    """Return what the last four stages of a timm model give."""
    found: list[Tensor] = net.forward_intermediates(x, indices=STAGES, intermediates_only=True)
    return found


@torch.no_grad()
def channels(backbone: Backbone) -> list[int]:
    """Return the channels of a backbone's four stages, having looked whether it has some.

    Raises:
        UserError: see `Pyramid`.
    """
    mode = backbone.training
    backbone.eval()
    try:
        maps = stages(backbone.net, torch.zeros_like(backbone.mean).expand(1, 3, PROBE, PROBE))
        sides = [y.shape[-1] for y in maps]
        fits = len(maps) == STAGES and all(a == 2 * b for a, b in pairwise(sides))
        reason = f"its last maps have sides of {sides} for an image of {PROBE} px"
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        fits, reason = False, (str(error) or type(error).__name__).splitlines()[0]
    finally:
        backbone.train(mode)
    if not fits:
        raise UserError(
            f"Detection with a feature pyramid needs a backbone with four stages, each of half the resolution of the "
            f"one before, such as a ResNet or ConvNeXt; this {type(backbone.net).__name__} is none ({reason}). Leave "
            "the detection evaluation out."
        )
    return [y.shape[1] for y in maps]


def detector(backbone: Backbone, settings: Shape, classes: int, seed: int) -> FasterRCNN:
    """Build a detector of `classes` classes on a backbone; new layers are initialised from the seed.

    It takes images 3×H×W in [0, 1], normalises them as the backbone does, and resizes them.
    """
    width = settings.width
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "", 0, "detector"))
        common: dict[str, Any] = {
            "min_size": settings.short,
            "max_size": settings.longest,
            "image_mean": backbone.mean.flatten().tolist(),
            "image_std": backbone.std.flatten().tolist(),
            "box_head": TwoMLPHead(width * 7**2, 4 * width),
            "box_predictor": FastRCNNPredictor(4 * width, classes + 1),
        }
        pyramid = Pyramid(backbone, width, settings.norms, settings.precision)
        if not settings.masks:
            return FasterRCNN(pyramid, **common)
        heads = MaskRCNNHeads(width, (width,) * 4, 1)
        return MaskRCNN(
            pyramid, mask_head=heads, mask_predictor=MaskRCNNPredictor(width, width, classes + 1), **common
        )
