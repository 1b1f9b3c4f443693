"""Backbones that were pretrained elsewhere: a file of weights for a timm model, or timm's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import timm
from timm.data.config import resolve_model_data_config
from torch import Tensor

from genview.encoders.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneSettings
from genview.encoders.strict import load_strictly
from genview.errors import UserError, nearest

Numbers = tuple[float, float, float]


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

    def load(self) -> Backbone:
        """Load it; every weight must find its place. Weights of a classifier are left out.

        Raises:
            UserError: the weights cannot be had, or are not those of the model; every name that is missing,
                unexpected or of another shape is listed.
        """
        name = self.name.partition(".")[0] if self.weights == "timm" else self.name
        state, mean, std = _of_timm(self) if self.weights == "timm" else _of_file(Path(self.weights))
        settings = BackboneSettings(name, self.args, self.stem_stride, self.mean or mean, self.std or std)
        backbone = Backbone(settings)
        kept = {key: value for key, value in state.items() if not _of_classifier(key, backbone.net)}
        what = f"The weights {self.weights} do not fit '{self.name}' with the arguments of backbone"
        load_strictly(backbone.net, kept, what)
        return backbone


def _of_file(path: Path) -> tuple[dict[str, Tensor], Numbers, Numbers]:
    if path.suffix != ".safetensors":
        raise UserError(
            f"backbone.weights names {path}, which could run code when it is read. Save the weights with safetensors "
            "and name that file, or say 'timm' for the weights that timm has."
        )
    try:
        return safetensors.torch.load_file(path), IMAGENET_MEAN, IMAGENET_STD
    except FileNotFoundError:
        raise UserError(f"There is no file of weights {path} (backbone.weights).") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or it is damaged: {error}.") from error


def _of_timm(given: GivenBackbone) -> tuple[dict[str, Tensor], Numbers, Numbers]:
    known = timm.list_pretrained()
    if given.name not in known and given.name not in {name.partition(".")[0] for name in known}:
        raise UserError(f"timm has no pretrained weights for '{given.name}'.{nearest(given.name, known)}")
    try:
        net = timm.create_model(given.name, pretrained=True, num_classes=0, **given.args)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of '{given.name}' cannot be had ({type(error).__name__}: {error}). Without a network, "
            "download model.safetensors elsewhere and name the file in backbone.weights."
        ) from error
    config: dict[str, Any] = resolve_model_data_config(net)
    mean, std = (tuple(float(x) for x in config[name]) for name in ("mean", "std"))
    return net.state_dict(), mean, std  # type: ignore[return-value]


def _of_classifier(key: str, net: Any) -> bool:
    """Whether a weight is one of the classifier, which timm names in the model's configuration."""
    names = net.pretrained_cfg.get("classifier") or ()
    return key.startswith(tuple(f"{name}." for name in ([names] if isinstance(names, str) else names)))
