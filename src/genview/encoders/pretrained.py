"""Weights for a trunk that others trained: timm's, or a local file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
from timm.data.config import resolve_model_data_config
from torch import Tensor

from genview.encoders.backbone import BackboneSettings, create_net, taking_args
from genview.encoders.strict import differences, say_left_out, shapes
from genview.errors import UserError, nearest

Numbers = tuple[float, float, float]


class Options(NamedTuple):
    """What the options are called that name a model and its weights, for errors."""

    weights: str
    model: str


OF_ENCODER = Options("encoder_weights", "encoder.trunk")
OF_TRAINING = Options("training.start_from", "training.backbone")


def trunk_weights(
    settings: BackboneSettings, weights: str, options: Options, say: Callable[[str], object] | None = None
) -> dict[str, Tensor]:
    """Return weights for the timm model of `settings`, without its classifier.

    Args:
        settings: the architecture.
        weights: a .safetensors file of a timm model of that architecture, such as `genview pretrain` or the hub has;
            or the name of pretrained weights that timm knows: the architecture's, or with a tag, resnet50.a1_in1k;
            or 'timm' for those of the architecture's name.
        options: that gave both, for errors.
        say: is told which weights of a file, those of a classifier, are left out.

    Raises:
        UserError: the weights cannot be had, or are of another architecture.
    """
    if weights.endswith((".safetensors", ".pt", ".pth", ".bin", ".tar")):
        return _of_file(settings, Path(weights), options, say)
    return _of_timm(settings, settings.name if weights == "timm" else weights, options)


class Pretrained(NamedTuple):
    """Weights by timm's names, and the mean and deviation of images in [0, 1] that they expect."""

    state: dict[str, Tensor]
    mean: Numbers
    std: Numbers


def read_weights(path: Path, option: str) -> dict[str, Tensor]:
    """Read a .safetensors file.

    Args:
        path: of the file.
        option: that named it, for errors.

    Raises:
        UserError: it is another sort of file, missing, or damaged.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} ({option}) could run code when it is read. Name a .safetensors file: `genview export "
            f"{shlex.quote(str(path))} --to timm --out DIR` makes one, DIR/model.safetensors, of most checkpoints."
        )
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"There is no file of weights {path} ({option}).") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or it is damaged: {error}.") from error


def timms_own(name: str, args: Mapping[str, Any], option: str) -> Pretrained:
    """Return the weights that timm has for a model, with a tag or without, less its classifier.

    Args:
        name: of the model, such as resnet50 or resnet50.a1_in1k.
        args: of `timm.create_model`.
        option: that named them, for errors.

    Raises:
        UserError: timm has none, or they cannot be had.
    """
    known = timm.list_pretrained()
    if name not in known and name not in {other.partition(".")[0] for other in known}:
        raise UserError(f"timm has no pretrained weights for '{name}' ({option}).{nearest(name, known)}")
    try:
        with taking_args(name):
            net = timm.create_model(name, pretrained=True, num_classes=0, **args)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of '{name}' cannot be had ({type(error).__name__}: {error}). Without a network, download "
            f"model.safetensors elsewhere and name the file in {option}."
        ) from error
    config: dict[str, Any] = resolve_model_data_config(net)
    mean, std = (tuple(float(x) for x in config[name]) for name in ("mean", "std"))
    return Pretrained(net.state_dict(), mean, std)  # type: ignore[arg-type]  # three numbers each


def _of_file(
    settings: BackboneSettings, path: Path, options: Options, say: Callable[[str], object] | None
) -> dict[str, Tensor]:
    found = read_weights(path, options.weights)
    wanted = create_net(settings).state_dict()
    head = ("fc.", "head.", "classifier.")
    body = {name: value for name, value in found.items() if name in wanted or not name.startswith(head)}
    if unlike := differences(shapes(wanted), shapes(body)):
        raise UserError(
            f"{path} ({options.weights}) does not hold a '{settings.name}' with the arguments of {options.model}; "
            f"name the model that the file is of there:\n{unlike}"
        )
    say_left_out(found, body, say)
    return {name: found[name] for name in wanted}


def _of_timm(settings: BackboneSettings, weights: str, options: Options) -> dict[str, Tensor]:
    model = weights.partition(".")[0]
    if model != settings.name and model in timm.list_models():
        raise UserError(
            f"{options.weights} are those of a '{model}' and {options.model}.name is "
            f"'{settings.name}': they should be the same."
        )
    found = timms_own(weights, settings.args, f"{options.weights}, where a file ends in .safetensors")
    if (found.mean, found.std) != (tuple(settings.mean), tuple(settings.std)):
        raise UserError(
            f"'{weights}' expects images with mean {list(found.mean)} and std {list(found.std)}: set "
            f"{options.model}.mean and {options.model}.std so."
        )
    return found.state
