"""Backbones to train: timm models that take images in [0, 1] and normalise for themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from genview.encoders.strict import load_strictly
from genview.encoders.vit import check_image_size
from genview.errors import UserError, nearest
from genview.store import write_bytes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, LookupError, AttributeError)
"""What models raise that are asked for what they cannot do."""


@dataclass(frozen=True)
class BackboneSettings:
    """A timm model: its name, the keyword arguments of `timm.create_model`, and the stride of a ResNet's stem.

    `stem_stride` 4 is the ImageNet stem; 2 leaves out the max-pooling, 1 the stride of the first convolution
    too, as is usual for 32 px images. No weight changes its shape, so stock timm loads the result.
    """

    name: str = "resnet50"
    args: Mapping[str, Any] = field(default_factory=dict)
    stem_stride: Literal[1, 2, 4] = 4
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class Backbone(nn.Module):
    """Images B×3×H×W in [0, 1] → features B×`width`.

    Raises:
        UserError: timm knows no such model, or refuses the arguments.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.net = create_net(settings)
        # Some families widen the pooled features once more; that the classifier sees, and that comes out.
        self.width = int(getattr(self.net, "head_hidden_size", self.net.num_features))
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and encode."""
        features: Tensor = self.net((images - self.mean) / self.std)
        return features


def create_net(settings: BackboneSettings) -> Any:
    """Create the timm model without its classifier, weights freshly initialised.

    Raises:
        UserError: timm knows no such model, or refuses the arguments.
    """
    if settings.name not in timm.list_models():
        raise UserError(_unknown(settings.name))
    with taking_args(settings.name):
        net = timm.create_model(settings.name, pretrained=False, num_classes=0, **settings.args)
    if settings.stem_stride < 4:
        _shrink_stem(net, settings)
    return net


@torch.no_grad()
def check_images(backbone: Backbone, size: int, option: str) -> None:
    """Show a backbone an image, of `size` pixels as `option` wants it, before hours are spent on the way to one.

    Raises:
        UserError: it does not take images of that size, or gives no plain features.
    """
    check_image_size(backbone.net, size, option)
    training, wrong = backbone.training, ""
    try:
        found = backbone.eval()(torch.zeros_like(backbone.mean).expand(1, 3, size, size))
        if found.shape != (1, backbone.width):
            wrong = f"it gives {'×'.join(map(str, found.shape))} values and not {backbone.width} features"
    except (*REFUSALS, RuntimeError) as error:
        wrong = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    finally:
        backbone.train(training)
    if wrong:
        raise UserError(
            f"This {type(backbone.net).__name__} cannot encode images of {size}×{size} px ({option}): {wrong}. "
            "Choose another size, or another backbone."
        )


@contextmanager
def taking_args(name: str) -> Iterator[None]:
    """Turn what timm says of arguments that a model cannot have into a UserError.

    Raises:
        UserError: the model was not created.
    """
    try:
        yield
    except REFUSALS as error:
        said = str(error).rstrip(".") or type(error).__name__
        raise UserError(
            f"timm's model '{name}' does not take these args: {said}. They are those of `timm.create_model`."
        ) from error


def _unknown(name: str) -> str:
    model, _, tag = name.partition(".")
    if tag and model in timm.list_models():
        return (
            f"'{name}' has a tag, '{tag}', which tells apart weights that timm has; only a backbone with `weights: "
            f"timm` takes one. For weights from elsewhere name the model alone: '{model}'."
        )
    return (
        f"timm has no model named '{name}'.{nearest(name, timm.list_models())} `timm.list_models()` shows all names."
    )


def _shrink_stem(net: Any, settings: BackboneSettings) -> None:
    if not isinstance(getattr(net, "maxpool", None), nn.Module) or not isinstance(
        getattr(net, "conv1", None), nn.Conv2d
    ):
        raise UserError(
            f"stem_stride {settings.stem_stride} is for ResNets with a plain stem; '{settings.name}' has none. "
            "Leave stem_stride out and use the model's own arguments (for a ViT: img_size, patch_size)."
        )
    net.maxpool = nn.Identity()
    if settings.stem_stride == 1:
        net.conv1.stride = (1, 1)


def export(backbone: Backbone, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write the weights of the timm model alone, as safetensors; `facts` go into the file's metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.net.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state, metadata=dict(facts) if facts else None))


def load(settings: BackboneSettings, path: Path) -> Backbone:
    """Read what `export` wrote; every key must fit.

    Raises:
        UserError: the file is missing, damaged, or of another architecture; then every difference is named.
    """
    backbone = Backbone(settings)
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"There is no backbone at {path}: run `genview pretrain` first.") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or it is damaged: {error}.") from error
    load_strictly(backbone.net, state, f"{path} does not fit the backbone '{settings.name}'")
    return backbone


def snippet(settings: BackboneSettings, path: Path) -> str:
    """Return Python lines that load the exported file with timm alone."""
    args = "".join(f", {name}={value!r}" for name, value in settings.args.items())
    stem = {
        4: "",
        2: "model.maxpool = torch.nn.Identity()\n",
        1: "model.maxpool = torch.nn.Identity()\nmodel.conv1.stride = (1, 1)\n",
    }[settings.stem_stride]
    return (
        "import safetensors.torch, timm, torch\n"
        f"model = timm.create_model({settings.name!r}, num_classes=0{args})\n"
        f"{stem}"
        f'model.load_state_dict(safetensors.torch.load_file("{path}"), strict=True)\n'
        f"# images: floats in [0, 1], less mean {settings.mean}, over std {settings.std}"
    )
