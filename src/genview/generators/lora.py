"""Low-rank updates of weights (LoRA: Hu et al., 2022), added to the weights once, as they are read.

By hand: where α differs from layer to layer, diffusers 0.42 with peft adds the updates of attention in kohya's naming
with the α of other layers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genview.errors import UserError

USUAL = "pytorch_lora_weights.safetensors"
Part = Literal["unet", "text_encoder"]
PREFIXES: Mapping[str, Part] = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
}
PIECE = re.compile(
    f"(?P<prefix>{'|'.join(map(re.escape, PREFIXES))})(?P<layer>.+?)"
    r"(\.alpha|[._]lora(_linear_layer)?[._](?P<piece>down|up|A|B)\.weight)"
)
"""Of diffusers (`.lora.down`, `.processor.to_q_lora.down`), peft (`.lora_A`) and kohya (`.lora_down`, `.alpha`)."""


class Update(NamedTuple):
    """B·A times `factor` is added to the weights of a layer: A r×in(×k×k), B out×r(×1×1)."""

    a: Tensor
    b: Tensor
    factor: float


@dataclass(frozen=True)
class Lora:
    """What a file adds to a UNet and a text encoder: updates by part and layer. `name` says which file it is."""

    name: str
    file: Path
    updates: Mapping[Part, Mapping[str, Update]]

    @torch.no_grad()
    def add_to(self, net: nn.Module, part: Part) -> None:
        """Add its updates to the weights of a network of diffusers or transformers, in the network's precision.

        Raises:
            UserError: a layer is not there or has another shape.
        """
        layers = {_plain(name): layer for name, layer in net.named_modules() if hasattr(layer, "weight")}
        for name, (a, b, factor) in self.updates.get(part, {}).items():
            weight = getattr(layers.get(name), "weight", None)
            if weight is None or b.shape[0] != len(weight) or a[0].numel() != weight[0].numel():
                raise UserError(
                    f"{self.file} was made for another model: the {part} has no layer '{name}' of {b.shape[0]} by "
                    f"{a[0].numel()} weights. Set generator.lora to one for the model that generator.weights names."
                )
            weight += factor * (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape)


def read_lora(lora: str, scale: float) -> Lora | None:
    """Read a LoRA in the naming of diffusers, peft or kohya; None where `lora` is empty.

    Args:
        lora: a file in safetensors; a folder or hub id with `USUAL` in it; or OWNER/NAME/FILE on the hub.
        scale: factor of all updates, beside the α/r of each.

    Raises:
        UserError: it cannot be had or read, or is no LoRA of Stable Diffusion 1 or 2.
    """
    from safetensors import SafetensorError, safe_open

    if not lora:
        return None
    file, name = _found(lora)
    try:
        with safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
        return Lora(name, file, _updates(state, header, scale))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read as a LoRA of Stable Diffusion ({' '.join(str(error).split())}). It should be a "
            "file in safetensors whose names begin with unet., text_encoder., lora_unet_ or lora_te_; DoRA, LoHa and "
            "LoKr are other methods."
        ) from error


def named(name: str, lora: Lora | None) -> str:
    """Return the name of weights to which a LoRA, if any, was added."""
    return name if lora is None else f"{name}+{lora.name}"


def _found(lora: str) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download

    here = Path(lora)
    if here.is_file() or here.is_dir():
        return (here / USUAL if here.is_dir() else here), here.resolve().stem
    owner, _, rest = lora.partition("/")
    name, _, file = rest.partition("/")
    try:
        found = Path(hf_hub_download(f"{owner}/{name}", file or USUAL))
    except (OSError, ValueError) as error:
        raise UserError(
            f"generator.lora names neither file nor folder: '{lora}', and {file or USUAL} could not be fetched from "
            f"the Hugging Face hub ({type(error).__name__}). Write the path of a file in safetensors."
        ) from error
    commit = found.parents[len(Path(file or USUAL).parts) - 1].name
    return found, f"{lora}@{commit[:12]}"


def _updates(state: Mapping[str, Tensor], header: Mapping[str, Any], scale: float) -> dict[Part, dict[str, Update]]:
    pieces: dict[tuple[Part, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        if not (match := PIECE.fullmatch(key)):
            raise ValueError(f"'{key}' is none of its weights")
        place = PREFIXES[match["prefix"]], _plain(match["layer"])
        piece = {"down": "A", "up": "B", None: "alpha"}.get(match["piece"], match["piece"])
        pieces.setdefault(place, {})[piece] = value
    if not pieces:
        raise ValueError("it is empty")
    found: dict[Part, dict[str, Update]] = {}
    for (part, layer), have in pieces.items():
        if not {"A", "B"} <= have.keys() or have["B"].shape[1] != (rank := len(have["A"])):
            raise ValueError(f"'{layer}' lacks one of its two matrices, or they do not fit each other")
        factor = float(have["alpha"]) / rank if "alpha" in have else _factor(header, part, layer, rank)
        found.setdefault(part, {})[layer] = Update(have["A"], have["B"], scale * factor)
    return found


def _factor(header: Mapping[str, Any], part: Part, layer: str, rank: int) -> float:
    """α/r as peft's settings in the file's header give it; without any, α is the rank."""
    alpha = header.get(f"{part}.lora_alpha", rank)
    for pattern, own in (header.get(f"{part}.alpha_pattern") or {}).items():
        if f"_{layer}".endswith(f"_{_plain(pattern.lstrip('^'))}"):
            alpha = own
    return float(alpha) / (math.sqrt(rank) if header.get(f"{part}.use_rslora") else rank)


def _plain(layer: str) -> str:
    """Name of a layer as kohya writes it, which all the others can be turned into."""
    name = layer.replace(".", "_").replace("_processor_", "_").removeprefix("text_model_")
    return f"{name}_0" if name.endswith("_to_out") else name
