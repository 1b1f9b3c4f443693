"""torchvision's ResNets and Vision Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from timm.models.resnet import ResNet
from torch import nn

from genview.encoders.backbone import BackboneSettings
from genview.encoders.naming import RESNET, TORCHVISION_VIT
from genview.encoders.strict import load_strictly
from genview.errors import UserError
from genview.export.target import Features, Source, of_normalised, record, statistics_line, stem_lines, with_stem
from genview.export.vit import PlainViT, plain_vit
from genview.store import write_bytes, write_json


class ToTorchvision:
    """model.safetensors under torchvision's names, without a classifier, and config.json."""

    library = "torchvision"
    what = "torchvision's names of weights"
    imports = "import safetensors.torch\nimport torch\nimport torchvision\n"

    def write(self, source: Source, folder: Path) -> None:
        """Write both files.

        Raises:
            UserError: torchvision has no such network.
        """
        naming = RESNET if isinstance(source.backbone.net, ResNet) else TORCHVISION_VIT
        call = _call(source)  # says so where there is none, before names are looked at
        write_bytes(
            folder / "model.safetensors", safetensors.torch.save(naming.into(source.backbone.net.state_dict()))
        )
        write_json(folder / "config.json", {"created_by": call, "genview": record(source)})

    def read(self, source: Source, folder: Path) -> Features:
        """Load the file into torchvision's model."""
        with torch.device("meta"):
            net = _created(source)
        state = safetensors.torch.load_file(folder / "model.safetensors")
        load_strictly(
            net, state, f"torchvision's network is not the '{source.settings.name}' of this backbone; use --to timm"
        )
        return of_normalised(source, net.eval())

    def snippet(self, source: Source) -> str:
        """Return lines for torchvision."""
        last = "fc" if isinstance(source.backbone.net, ResNet) else "heads"
        return (
            f"{statistics_line(source.settings)}"
            f"model = {_call(source)}\n"
            f"model.{last} = torch.nn.Identity()\n"
            f"{stem_lines(source.settings)}"
            'model.load_state_dict(safetensors.torch.load_file(f"{folder}/model.safetensors"), strict=True)\n'
            "features = model.eval()((images - mean) / std)\n"
        )


def _created(source: Source) -> nn.Module:
    net: Any
    if isinstance(source.backbone.net, ResNet):
        net = torchvision.models.get_model(_resnet(source.settings))
        net.fc = nn.Identity()
        return with_stem(net, source.settings)
    net = torchvision.models.VisionTransformer(**_vit(plain_vit(source, "torchvision")))
    net.heads = nn.Identity()
    return net  # type: ignore[no-any-return]


def _call(source: Source) -> str:
    if isinstance(source.backbone.net, ResNet):
        return f"torchvision.models.{_resnet(source.settings)}()"
    args = _vit(plain_vit(source, "torchvision"))
    return f"torchvision.models.VisionTransformer({', '.join(f'{name}={value}' for name, value in args.items())})"


def _resnet(settings: BackboneSettings) -> str:
    if settings.name not in torchvision.models.list_models(torchvision.models):
        raise UserError(
            f"torchvision has no '{settings.name}'. It has the plain ResNets; those with another stem, pooling in "
            "the shortcut (names with a d), attention or antialiasing are timm's alone: use --to timm."
        )
    return settings.name


def _vit(plain: PlainViT) -> dict[str, int]:
    return {
        "image_size": plain.size,
        "patch_size": plain.patch,
        "num_layers": plain.depth,
        "num_heads": plain.heads,
        "hidden_dim": plain.width,
        "mlp_dim": plain.hidden,
    }
