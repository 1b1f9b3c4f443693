"""Weights for a trunk that others trained: timm's, or a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from timm.data.config import resolve_model_data_config
from torch import Tensor

from genview.encoders.backbone import BackboneSettings, create_net
from genview.encoders.strict import differences, shapes
from genview.errors import UserError, nearest


def trunk_weights(settings: BackboneSettings, weights: str) -> dict[str, Tensor]:
    """Return weights for the timm model of `settings`, without its classifier.

    Args:
        settings: the architecture.
        weights: a .safetensors file of a timm model of that architecture, such as `genview pretrain` or the hub has;
            or the name of pretrained weights that timm knows: the architecture's, or with a tag, resnet50.a1_in1k.

    Raises:
        UserError: the weights cannot be had, or are of another architecture.
    """
    if weights.endswith((".safetensors", ".pt", ".pth", ".bin")):
        return _of_file(settings, Path(weights))
    return _of_timm(settings, weights)


def _of_file(settings: BackboneSettings, path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} could run code when it is read. Save the weights with safetensors and name that file."
        )
    try:
        found = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"There is no file of weights {path} (encoder_weights).") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or it is damaged: {error}.") from error
    wanted = create_net(settings).state_dict()
    head = ("fc.", "head.", "classifier.")
    body = {name: value for name, value in found.items() if name in wanted or not name.startswith(head)}
    if unlike := differences(shapes(wanted), shapes(body)):
        raise UserError(
            f"{path} does not hold a '{settings.name}' with the arguments of encoder.trunk; name the model that the "
            f"file is of there:\n{unlike}"
        )
    return {name: found[name] for name in wanted}


def _of_timm(settings: BackboneSettings, weights: str) -> dict[str, Tensor]:
    known = timm.list_pretrained()
    if weights not in known and weights not in {name.partition(".")[0] for name in known}:
        raise UserError(
            f"timm has no pretrained weights '{weights}' (encoder_weights), and a file would end in "
            f".safetensors.{nearest(weights, known)}"
        )
    if weights.partition(".")[0] != settings.name:
        raise UserError(
            f"encoder_weights are those of a '{weights.partition('.')[0]}' and encoder.trunk.name is "
            f"'{settings.name}': they should be the same."
        )
    try:
        net = timm.create_model(weights, pretrained=True, num_classes=0, **settings.args)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights '{weights}' cannot be had ({type(error).__name__}: {error}). Without a network, download "
            "model.safetensors elsewhere and name the file in encoder_weights."
        ) from error
    config: dict[str, Any] = resolve_model_data_config(net)
    mean, std = (tuple(float(x) for x in config[name]) for name in ("mean", "std"))
    if (mean, std) != (tuple(settings.mean), tuple(settings.std)):
        raise UserError(
            f"'{weights}' expects images with mean {list(mean)} and std {list(std)}: set encoder.trunk.mean and "
            "encoder.trunk.std so."
        )
    state: dict[str, Tensor] = net.state_dict()
    return state
