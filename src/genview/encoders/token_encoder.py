"""The small encoder that `fit-generator` trains: foreground tokens and a generator's condition from one pass."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genview.encoders.backbone import BackboneSettings, create_net
from genview.encoders.frozen import Encoded
from genview.encoders.tower import as_tokens, fitted
from genview.errors import UserError
from genview.store import write_bytes, write_json

TRIAL = 64
"""Side of the image that tells the shapes of a trunk's feature maps."""
INSIDE = Path(__file__).parent.parent / "embedded"


def weights_folder(name: str) -> Path:
    """Return the folder of a model inside the package, or `name` itself as a folder."""
    inside = INSIDE / name
    return inside if name and inside.is_dir() else Path(name)


@dataclass(frozen=True)
class TokenEncoderSettings:
    """A trunk, the feature level that gives tokens, and the levels and channels of the condition's two parts.

    Levels count from the stem (0). The *detail* says how things look: `detail_channels` numbers for each position of
    the coarsest of the levels `detail_from`. The *gist* says what they are: `gist_channels` for each position of the
    level `gist_from`, which is coarser. At 32 px with `stem_stride` 2, levels 0 and 1 are 16×16 maps, level 2 is 8×8
    and level 3 is 4×4.
    """

    trunk: BackboneSettings = field(default_factory=BackboneSettings)
    tokens_from: int = 3
    detail_from: tuple[int, ...] = (0, 2)
    detail_channels: int = 8
    gist_from: int = 3
    gist_channels: int = 32


class Code(NamedTuple):
    """The condition of a small generator: detail B×D×h×w and gist B×G×(h/k)×(w/k), of unit variance a channel."""

    detail: Tensor
    gist: Tensor


class TokenEncoder(nn.Module):
    """Images B×3×S×S in [0, 1] → feature maps, and a code with zero mean and unit variance per channel.

    Detail and gist are linear maps of some feature levels. `sketch` is a linear map of the detail back to the pixels
    of each stride×stride block, in [-1, 1]; `residual` is the mean variance of the pixels that the sketch misses.
    `generators.code.fit_code` sets them all. That channels have unit variance gives the noise levels of unCLIP
    their meaning: at level l the signal is sqrt(abar_l) and the noise sqrt(1 - abar_l) of one unit.

    Raises:
        UserError: the trunk has no such feature levels, takes no images of other sizes, or has fewer features than
            the code is to have channels.
    """

    mean: Tensor
    std: Tensor
    residual: Tensor

    def __init__(self, settings: TokenEncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.trunk = create_net(settings.trunk)
        self.register_buffer("mean", torch.tensor(settings.trunk.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.trunk.std).view(1, 3, 1, 1), persistent=False)
        with torch.no_grad():
            seen = self.eval()._tried()
        _check(settings, seen)
        self.stride, self.gist_stride = (TRIAL // found.shape[-1] for found in (seen.fine, seen.deep))
        self.detail = nn.Conv2d(seen.fine.shape[1], settings.detail_channels, 1)
        self.gist = nn.Conv2d(seen.deep.shape[1], settings.gist_channels, 1)
        self.sketch = nn.Conv2d(settings.detail_channels, 3 * self.stride**2, 1)
        self.register_buffer("residual", torch.ones(()))
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, Code]:
        """Return the token map B×D×h×w and the code."""
        seen = self.features(images)
        return seen.tokens, Code(self.detail(seen.fine), self.gist(seen.deep))

    def _tried(self) -> Features:
        """Return the features of an image of `TRIAL` pixels, or say why the trunk has none."""
        if min(self._levels()) < 0:  # timm would count these from the end
            raise UserError("encoder.tokens_from, detail_from and gist_from count feature levels from 0.")
        try:
            return self.features(torch.zeros(1, 3, TRIAL, TRIAL))
        except (AssertionError, AttributeError, RuntimeError, ValueError) as error:
            name, said = self.settings.trunk.name, str(error).rstrip(".")
            last = len(getattr(self.trunk, "feature_info", ())) - 1
            advice = "it should take any size, as a ViT does with encoder.trunk.args={dynamic_img_size: true}"
            if max(self._levels()) > last:
                advice = f"encoder.tokens_from, detail_from and gist_from name its feature levels, 0 to {last}"
            raise UserError(f"timm's '{name}' (encoder.trunk) gives no features here ({said}): {advice}.") from error

    def _levels(self) -> list[int]:
        settings = self.settings
        return sorted({*settings.detail_from, settings.gist_from, settings.tokens_from})

    def features(self, images: Tensor) -> Features:
        """Run the trunk, normalised, and lay the levels of the detail side by side."""
        settings, wanted = self.settings, self._levels()
        x = (images - self.mean) / self.std
        found = self.trunk.forward_intermediates(x, indices=wanted, stop_early=True, intermediates_only=True)
        maps = dict(zip(wanted, found, strict=True))
        side = maps[max(settings.detail_from)].shape[-1]
        folded = [F.pixel_unshuffle(maps[level], maps[level].shape[-1] // side) for level in settings.detail_from]
        return Features(maps[settings.tokens_from], torch.cat(folded, dim=1), maps[settings.gist_from])


class Features(NamedTuple):
    """Feature maps of a trunk: tokens; what the detail is read from, finer levels folded onto the coarsest's grid;
    and what the gist is read from.
    """

    tokens: Tensor
    fine: Tensor
    deep: Tensor


def _check(settings: TokenEncoderSettings, seen: Features) -> None:
    """See that there are features for the code."""
    for name, channels, found in (
        ("detail", settings.detail_channels, seen.fine),
        ("gist", settings.gist_channels, seen.deep),
    ):
        if not 1 <= channels <= found.shape[1]:
            raise UserError(
                f"encoder.{name}_channels is {channels}, and the feature levels encoder.{name}_from have "
                f"{found.shape[1]} channels: write 1 to {found.shape[1]}, or name other levels."
            )


class FrozenTokenEncoder:
    """A trained `TokenEncoder` as a `FrozenEncoder`; the embedding is the code, detail before gist, flattened."""

    def __init__(self, name: str, model: TokenEncoder, size: int) -> None:
        self.name = name
        self.size = size
        # Channels last is a third faster on CPUs.
        self._model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def model(self) -> TokenEncoder:
        """The network, whose sketch a generator starts from."""
        return self._model

    def code(self, embedding: Tensor) -> Code:
        """Turn embeddings B×E back into a code."""
        settings, model = self._model.settings, self._model
        side, coarse = self.size // model.stride, self.size // model.gist_stride
        detail, gist = embedding.split(
            [settings.detail_channels * side**2, settings.gist_channels * coarse**2], dim=1
        )
        return Code(detail.unflatten(1, (-1, side, side)), gist.unflatten(1, (-1, coarse, coarse)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Encode B×3×H×W in [0, 1]; see `FrozenEncoder`."""
        token_map, code = self._model(fitted(images, self.size))
        grid = (token_map.shape[2], token_map.shape[3])
        embedding = torch.cat([part.flatten(1) for part in code], dim=1).float()
        return Encoded(as_tokens(token_map), embedding, grid)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._model.to(device)
        return self


def save_token_encoder(model: TokenEncoder, folder: Path) -> None:
    """Write config.json and model.safetensors (half precision)."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    write_bytes(folder / "model.safetensors", safetensors.torch.save(halves))
    write_json(folder / "config.json", asdict(model.settings))


def load_token_encoder(folder: Path, size: int) -> FrozenTokenEncoder:
    """Read what `save_token_encoder` wrote.

    Raises:
        UserError: the folder is not such an encoder.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        trunk, levels = BackboneSettings(**config.pop("trunk")), tuple(config.pop("detail_from"))
        model = TokenEncoder(TokenEncoderSettings(trunk=trunk, detail_from=levels, **config))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except (OSError, TypeError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder} does not hold an encoder made by `genview fit-generator` ({error}). "
            "Point at the `encoder` folder inside its --out folder."
        ) from error
    if size % model.gist_stride:
        raise UserError(f"size {size} does not suit this encoder: take a multiple of {model.gist_stride} pixels.")
    return FrozenTokenEncoder(folder.parent.name, model, size)
