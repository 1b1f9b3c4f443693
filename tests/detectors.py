"""A tiny backbone for detectors, and settings that train one in six steps."""

from __future__ import annotations

import torch

from genview.encoders import Backbone, BackboneSettings
from genview.evaluation.detection import Detection

TINY = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
SMALL = Detection("", "", "", masks=True, length="6 steps", batch=2, rate=0.01, short=(64,), longest=96, width=8)


def backbone() -> Backbone:
    torch.manual_seed(1)
    return Backbone(TINY)
