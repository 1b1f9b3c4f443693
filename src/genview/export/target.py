"""What can be exported, what it is exported to, and whether the two agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.backbone import Backbone, BackboneSettings
from genview.errors import UserError

Features = Callable[[Tensor], Tensor]
"""Images B×3×H×W in [0, 1] → features B×width."""
TOLERANCE = 1e-4
"""Of the largest feature: far above what another order of sums makes of float32, far below any wrong weight."""


@dataclass(frozen=True)
class Source:
    """A backbone to export, in eval mode on the CPU, and the side of the square images it is for, in pixels."""

    settings: BackboneSettings
    backbone: Backbone
    size: int


class Target(Protocol):
    """A layout of another library. `library` is who reads it, `what` says in words what is written.

    `imports` are the Python lines that its snippet begins with.
    """

    library: str
    what: str
    imports: str

    def write(self, source: Source, folder: Path) -> None:
        """Write the files of this layout into a folder.

        Raises:
            UserError: the layout has no place for this network, or a package is missing.
        """

    def read(self, source: Source, folder: Path) -> Features:
        """Load what `write` wrote as its reader would, strictly."""

    def snippet(self, source: Source) -> str:
        """Return Python lines that load it from `folder` and compute `features` of `images` in [0, 1]."""


@dataclass(frozen=True)
class Agreement:
    """The largest absolute difference of features, and the largest absolute feature."""

    difference: float
    largest: float

    def __str__(self) -> str:
        return f"features differ by at most {self.difference:.1e}, the largest being {self.largest:.3g}"


def agreement(source: Source, read: Features) -> Agreement:
    """Compare what was written with the backbone, on `probe_images`, together and one by one.

    Raises:
        UserError: they differ by more than `TOLERANCE` of the largest feature, or a feature is not finite.
    """
    images = probe_images(source.size)
    with torch.no_grad():
        expected = source.backbone(images)
        found = [read(images), torch.cat([read(image[None]) for image in images])]
    result = Agreement(max(float((one - expected).abs().max()) for one in found), float(expected.abs().max()))
    if not result.difference <= TOLERANCE * result.largest:  # what is not a number is not less either
        raise UserError(
            f"What was written does not compute what the backbone computes ({result}), so it is not kept. If the "
            "weights are finite, this network is one that the layout only seems to have a place for: use --to timm."
        )
    return result


def probe_images(size: int) -> Tensor:
    """Return images 4×3×size×size in [0, 1]: noise, two of smooth shapes as photographs have, and a black one."""
    chance = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, size, size, generator=chance)
    octaves = [torch.rand(2, 3, side, side, generator=chance) - 0.5 for side in (2, 4, 8, 16)]
    grown = [F.interpolate(octave, (size, size), mode="bicubic") / 2**i for i, octave in enumerate(octaves)]
    smooth = (0.5 + torch.stack(grown).sum(0)).clamp(0, 1)
    return torch.cat([noise, smooth, torch.zeros(1, 3, size, size)])


def of_normalised(source: Source, net: Features) -> Features:
    """Return the features of a network that others normalise for."""
    mean, std = source.backbone.mean, source.backbone.std
    return lambda images: net((images - mean) / std)


def with_stem(net: nn.Module, settings: BackboneSettings) -> nn.Module:
    """Give a ResNet of timm or torchvision, as created, the stem of the settings; see `stem_lines`."""
    if settings.stem_stride < 4:
        net.maxpool = nn.Identity()
    if settings.stem_stride == 1 and isinstance(net.conv1, nn.Conv2d):
        net.conv1.stride = (1, 1)
    return net


def statistics_line(settings: BackboneSettings) -> str:
    """Return the Python line that defines `mean` and `std`."""
    numbers = f"{tuple(settings.mean)}, {tuple(settings.std)}"
    return f"mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ({numbers}))\n"


def stem_lines(settings: BackboneSettings) -> str:
    """Return Python lines that do `with_stem`; none for the stem of ImageNet."""
    lines = ("model.maxpool = torch.nn.Identity()\n", "model.conv1.stride = (1, 1)\n")
    return "".join(lines[: {4: 0, 2: 1, 1: 2}[settings.stem_stride]])


def record(source: Source) -> dict[str, object]:
    """Return what every config.json says, under `genview`: timm's model and how images are prepared for it."""
    settings = source.settings
    return {
        "architecture": settings.name,
        "args": dict(settings.args),
        "stem_stride": settings.stem_stride,
        "mean": list(settings.mean),
        "std": list(settings.std),
        "size": source.size,
    }
