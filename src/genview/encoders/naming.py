"""How other libraries name the weights of ResNets and Vision Transformers, told from timm's names by rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genview.errors import UserError

Rule = tuple[str, str | tuple[str, ...]]
"""A pattern that a whole name of timm's matches, and what stands for it; several names share a tensor equally."""


@dataclass(frozen=True)
class Naming:
    """A library's names for one family of networks.

    `first` is the weight of the first convolution, which sees three channels; it and `also` tell the naming.
    """

    name: str
    family: Literal["resnet", "vit", "network"]
    first: str
    also: str
    rules: tuple[Rule, ...]

    def of(self, name: str) -> tuple[str, ...]:
        """Return what a weight of timm's is called here, in parts along its first axis; empty: it has no place."""
        for pattern, stands in self.rules:
            if found := re.fullmatch(pattern, name):
                return tuple(found.expand(text) for text in ((stands,) if isinstance(stands, str) else stands))
        return ()

    def into(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename timm's weights to these names.

        Raises:
            UserError: some have no place.
        """
        if homeless := [name for name in state if not self.of(name)]:
            raise UserError(
                f"This network has parts that the layout of {self.name} has no place for: {', '.join(homeless[:6])}"
                f"{f' and {len(homeless) - 6} more' if len(homeless) > 6 else ''}. Export --to timm instead."
            )
        pieces = {name: (self.of(name), value) for name, value in state.items()}
        return {
            new: piece.contiguous()
            for names, value in pieces.values()
            for new, piece in zip(names, value.chunk(len(names)) if len(names) > 1 else (value,), strict=True)
        }

    def out_of(self, state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the weights `wanted` of timm's that are whole here, under timm's names."""
        found = {name: [state.get(part) for part in self.of(name)] for name in wanted}
        whole = {name: [part for part in parts if part is not None] for name, parts in found.items()}
        return {
            name: parts[0] if len(parts) == 1 else torch.cat(parts)
            for name, parts in whole.items()
            if parts and len(parts) == len(found[name])
        }


PARAMETER = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK = rf"(\d+)\.(conv\d|bn\d|downsample\.[01])\.{PARAMETER}"
STAGES = (1, 2, 3, 4)

RESNET = Naming(
    "torchvision",
    "resnet",
    "conv1.weight",
    "layer1.0.conv1.weight",
    ((rf"(conv1|bn1)\.{PARAMETER}", r"\1.\2"), (rf"layer(\d)\.{BLOCK}", r"layer\1.\2.\3.\4")),
)
"""torchvision's names, which are timm's too, wherever a ResNet has the parts that torchvision's has."""

SEQUENTIAL = Naming(
    "lightly",
    "resnet",
    "0.weight",
    "4.0.conv1.weight",
    (
        (rf"conv1\.{PARAMETER}", r"0.\1"),
        (rf"bn1\.{PARAMETER}", r"1.\1"),
        *((rf"layer{n}\.{BLOCK}", rf"{n + 3}.\1.\2.\3") for n in STAGES),
    ),
)
"""torchvision's children in an nn.Sequential: conv1, bn1, ReLU, max-pooling, layer1 … layer4, pooling."""

TRANSFORMERS_RESNET = Naming(
    "transformers",
    "resnet",
    "embedder.embedder.convolution.weight",
    "encoder.stages.0.layers.0.layer.0.convolution.weight",
    (
        (rf"conv1\.{PARAMETER}", r"embedder.embedder.convolution.\1"),
        (rf"bn1\.{PARAMETER}", r"embedder.embedder.normalization.\1"),
        *(
            rule
            for n in STAGES
            for k in (1, 2, 3)
            for here in [rf"encoder.stages.{n - 1}.layers.\1.layer.{k - 1}"]
            for rule in (
                (rf"layer{n}\.(\d+)\.conv{k}\.{PARAMETER}", rf"{here}.convolution.\2"),
                (rf"layer{n}\.(\d+)\.bn{k}\.{PARAMETER}", rf"{here}.normalization.\2"),
            )
        ),
        *(
            (
                rf"layer{n}\.(\d+)\.downsample\.{i}\.{PARAMETER}",
                rf"encoder.stages.{n - 1}.layers.\1.shortcut.{part}.\2",
            )
            for n in STAGES
            for i, part in enumerate(("convolution", "normalization"))
        ),
    ),
)

_EITHER = r"(weight|bias)"
TIMM_VIT = Naming(
    "timm",
    "vit",
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    ((r"(cls_token|reg_token|pos_embed|(?:patch_embed|norm_pre|norm|fc_norm|blocks)\..*)", r"\1"),),
)

TIMM_ANY = Naming("timm", "network", "", "", ((r"(.+)", r"\1"),))
"""Any network of timm's, whose names stay; nothing tells it, so it is taken where it is named."""

TORCHVISION_VIT = Naming(
    "torchvision",
    "vit",
    "conv_proj.weight",
    "encoder.layers.encoder_layer_0.ln_1.weight",
    (
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        (rf"patch_embed\.proj\.{_EITHER}", r"conv_proj.\1"),
        (rf"blocks\.(\d+)\.norm([12])\.{_EITHER}", r"encoder.layers.encoder_layer_\1.ln_\2.\3"),
        (rf"blocks\.(\d+)\.attn\.qkv\.{_EITHER}", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
        (rf"blocks\.(\d+)\.attn\.proj\.{_EITHER}", r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2"),
        (rf"blocks\.(\d+)\.mlp\.fc1\.{_EITHER}", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
        (rf"blocks\.(\d+)\.mlp\.fc2\.{_EITHER}", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
        (rf"norm\.{_EITHER}", r"encoder.ln.\1"),
    ),
)

MMPRETRAIN_VIT = Naming(
    "mmpretrain",
    "vit",
    "patch_embed.projection.weight",
    "layers.0.attn.qkv.weight",
    (
        ("(cls_token|pos_embed)", r"\1"),
        (rf"patch_embed\.proj\.{_EITHER}", r"patch_embed.projection.\1"),
        (rf"blocks\.(\d+)\.norm([12])\.{_EITHER}", r"layers.\1.ln\2.\3"),
        (rf"blocks\.(\d+)\.attn\.(qkv|proj)\.{_EITHER}", r"layers.\1.attn.\2.\3"),
        (rf"blocks\.(\d+)\.mlp\.fc1\.{_EITHER}", r"layers.\1.ffn.layers.0.0.\2"),
        (rf"blocks\.(\d+)\.mlp\.fc2\.{_EITHER}", r"layers.\1.ffn.layers.1.\2"),
        (rf"norm\.{_EITHER}", r"ln1.\1"),
    ),
)


def _transformers_vit(layers: str, query: tuple[str, ...], proj: str, mlp: tuple[str, str]) -> Naming:
    return Naming(
        "transformers",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        f"{layers}.0.layernorm_before.weight",
        (
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            (rf"patch_embed\.proj\.{_EITHER}", r"embeddings.patch_embeddings.projection.\1"),
            (rf"blocks\.(\d+)\.norm1\.{_EITHER}", rf"{layers}.\1.layernorm_before.\2"),
            (rf"blocks\.(\d+)\.norm2\.{_EITHER}", rf"{layers}.\1.layernorm_after.\2"),
            (rf"blocks\.(\d+)\.attn\.qkv\.{_EITHER}", tuple(rf"{layers}.\1.attention.{q}.\2" for q in query)),
            (rf"blocks\.(\d+)\.attn\.proj\.{_EITHER}", rf"{layers}.\1.attention.{proj}.\2"),
            (rf"blocks\.(\d+)\.mlp\.fc1\.{_EITHER}", rf"{layers}.\1.{mlp[0]}.\2"),
            (rf"blocks\.(\d+)\.mlp\.fc2\.{_EITHER}", rf"{layers}.\1.{mlp[1]}.\2"),
            (rf"norm\.{_EITHER}", r"layernorm.\1"),
        ),
    )


TRANSFORMERS_VIT = _transformers_vit(
    "encoder.layer",
    ("attention.query", "attention.key", "attention.value"),
    "output.dense",
    ("intermediate.dense", "output.dense"),
)
"""As in files, and in the memory of transformers 4."""

TRANSFORMERS_VIT_5 = _transformers_vit("layers", ("q_proj", "k_proj", "v_proj"), "o_proj", ("mlp.fc1", "mlp.fc2"))
"""As in the memory of transformers 5."""

NAMINGS = (
    RESNET,
    SEQUENTIAL,
    TRANSFORMERS_RESNET,
    TIMM_VIT,
    TORCHVISION_VIT,
    MMPRETRAIN_VIT,
    TRANSFORMERS_VIT,
    TRANSFORMERS_VIT_5,
)
