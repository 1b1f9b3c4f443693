"""Backbones that were pretrained elsewhere: a file of weights for a timm model, or timm's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from genview.encoders.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneSettings
from genview.encoders.pretrained import Numbers, read_weights, timms_own
from genview.encoders.strict import load_strictly, say_left_out

OPTION = "backbone.weights"


@dataclass(frozen=True)
class GivenBackbone:
    """A timm model and weights that it was given elsewhere.

    `weights` is a .safetensors file, such as every run leaves, or 'timm' for those that timm has for the `name`,
    which may have a tag then, as in 'resnet50.a1_in1k'. `args` and `stem_stride` are those of `BackboneSettings`.
    `mean` and `std` of images in [0, 1] are timm's for its own weights, and ImageNet's for a file, unless given.
    """

    name: str
    weights: str = "timm"
    args: Mapping[str, Any] = field(default_factory=dict)
    stem_stride: Literal[1, 2, 4] = 4
    mean: Numbers | None = None
    std: Numbers | None = None

    def load(self, say: Callable[[str], object] | None = None) -> Backbone:
        """Load it; every weight must find its place. Weights of a classifier are left out, which `say` is told.

        Raises:
            UserError: the weights cannot be had, or are not those of the model; every name that is missing,
                unexpected or of another shape is listed.
        """
        name = self.name.partition(".")[0] if self.weights == "timm" else self.name
        if self.weights == "timm":
            state, mean, std = timms_own(self.name, self.args, OPTION)
        else:
            state, mean, std = read_weights(Path(self.weights), OPTION), IMAGENET_MEAN, IMAGENET_STD
        settings = BackboneSettings(name, self.args, self.stem_stride, self.mean or mean, self.std or std)
        backbone = Backbone(settings)
        kept = {key: value for key, value in state.items() if not _of_classifier(key, backbone.net)}
        what = f"The weights {self.weights} do not fit '{self.name}' with the arguments of backbone"
        load_strictly(backbone.net, kept, what)
        say_left_out(state, kept, say)
        return backbone


def _of_classifier(key: str, net: Any) -> bool:
    """Whether a weight is one of the classifier, which timm names in the model's configuration."""
    names = net.pretrained_cfg.get("classifier") or ()
    return key.startswith(tuple(f"{name}." for name in ([names] if isinstance(names, str) else names)))
