"""Encoders: frozen towers that are looked through, and backbones that are trained."""

from pathlib import Path

from genview.encoders.backbone import Backbone, BackboneSettings
from genview.encoders.frozen import Encoded, FrozenEncoder
from genview.encoders.token_encoder import (
    Code,
    TokenEncoder,
    TokenEncoderSettings,
    load_token_encoder,
    weights_folder,
)
from genview.encoders.tower import TimmTower, load_timm

__all__ = [
    "Backbone",
    "BackboneSettings",
    "Code",
    "Encoded",
    "FrozenEncoder",
    "TimmTower",
    "TokenEncoder",
    "TokenEncoderSettings",
    "load_frozen",
    "weights_folder",
]


def load_frozen(name: str, size: int | None = None) -> FrozenEncoder:
    """Load a frozen encoder: a generator inside the package, a folder made by `fit-generator`, or a timm name.

    Args:
        name: 'natural', a folder, 'local-dir:FOLDER' for timm, or a timm name such as
            convnext_base.clip_laion2b_augreg.
        size: side in pixels at which it looks at images; its own where None.

    Raises:
        UserError: nothing of that name can be loaded.
    """
    folder = weights_folder(name)
    if (folder / "encoder").is_dir():
        return load_token_encoder(folder / "encoder", size or 32)
    if Path(name).is_dir():
        return load_timm(f"local-dir:{name}", size)
    return load_timm(name, size)
