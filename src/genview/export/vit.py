"""The plain Vision Transformer that every library has, and whether a backbone is one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from genview.encoders.vit import is_vit
from genview.errors import UserError
from genview.export.target import Source


@dataclass(frozen=True)
class PlainViT:
    """Side of images and of patches in pixels, blocks, heads, widths of tokens and MLP, LayerNorm's epsilon."""

    size: int
    patch: int
    depth: int
    heads: int
    width: int
    hidden: int
    epsilon: float


def plain_vit(source: Source, library: str) -> PlainViT:
    """Return the numbers of a backbone that is a plain ViT with a class token, whose output is the feature.

    Raises:
        UserError: it is none, so `library` has no place for it.
    """
    net = source.backbone.net
    reason = None
    if not is_vit(net):
        reason = "only plain ResNets and Vision Transformers have a place there"
    elif net.global_pool != "token" or net.num_prefix_tokens != 1:
        reason = "its feature is not the output of a single class token"
    elif not isinstance(net.norm, nn.LayerNorm) or not isinstance(net.blocks[0].mlp.act, nn.GELU):
        reason = "its last norm or its activation is another than a plain ViT's"
    elif net.blocks[0].attn.qkv.bias is None or len(set(net.patch_embed.grid_size)) != 1:
        reason = "its attention has no biases, or its images are not square"
    if reason:
        raise UserError(f"{library} has no network like this '{source.settings.name}': {reason}. Use --to timm.")
    return PlainViT(
        size=net.patch_embed.img_size[0],
        patch=net.patch_embed.patch_size[0],
        depth=len(net.blocks),
        heads=net.blocks[0].attn.num_heads,
        width=net.embed_dim,
        hidden=net.blocks[0].mlp.fc1.out_features,
        epsilon=net.norm.eps,
    )
