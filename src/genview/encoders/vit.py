"""What some methods ask of timm's Vision Transformers: frozen patches, fixed positions, crops of several sizes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from genview.errors import UserError


def is_vit(net: Any) -> bool:
    """Whether a timm model is a plain Vision Transformer."""
    return isinstance(net, VisionTransformer)


def freeze_patch_embedding(net: Any) -> None:
    """Draw the patch embedding of a ViT at random once more and keep it so (MoCo v3, section 4).

    Xavier-uniform over the flattened patch, no bias: as what stays random for ever, its scale matters.

    Raises:
        UserError: the patches do not go through one convolution.
    """
    if not isinstance(net.patch_embed, PatchEmbed):
        raise UserError(
            "This backbone does not embed its patches by one convolution, so they cannot be frozen: "
            "set method.frozen_patches to false, or use a plain ViT such as vit_small_patch16_224."
        )
    projection = net.patch_embed.proj
    with torch.no_grad():
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        if projection.bias is not None:
            projection.bias.zero_()
    projection.requires_grad_(False)


def fix_positions(net: Any) -> None:
    """Give a ViT fixed sine and cosine positions in place of learned ones (MoCo v3, section 4); its name stays.

    Raises:
        UserError: the model's width is no multiple of 4, or it has no absolute positions.
    """
    if net.pos_embed is None:
        raise UserError("This ViT has no absolute positions to fix: set method.fixed_positions to false.")
    height, width = net.patch_embed.grid_size
    positions = sin_cos_positions(height, width, net.embed_dim, before=net.pos_embed.shape[1] - height * width)
    with torch.no_grad():
        net.pos_embed.copy_(positions[None])
    net.pos_embed.requires_grad_(False)


def sin_cos_positions(height: int, width: int, dim: int, before: int = 0) -> Tensor:
    """Return sine and cosine positions of a grid of tokens, (before + height·width)×dim.

    A quarter of the channels each: sine of the row, sine of the column, cosine of the row, cosine of the column, at
    the frequencies 10000^(−4k/dim). `before` tokens in front, such as the class token, get zeros.

    Raises:
        UserError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise UserError(
            f"Sine and cosine positions need a width that is a multiple of 4, and this ViT's is {dim}: change "
            "backbone.args.embed_dim, or set method.fixed_positions to false."
        )
    grid: Tensor = build_sincos2d_pos_embed([height, width], dim)
    return torch.cat([torch.zeros(before, dim), grid])


def built_for(net: Any) -> tuple[int, int] | None:
    """Return height and width of the images that a network with patches was built for; None for any other."""
    patches = _patches(net)
    return patches.img_size if patches is not None else None


def check_image_size(net: Any, size: int, option: str) -> None:
    """Refuse images that a network with patches, such as a ViT, does not take; `option` gave their side, in pixels.

    Raises:
        UserError: the network takes those of another size only, or its patches do not fill the images.
    """
    patches = _patches(net)
    if patches is None or patches.img_size is None:
        return
    if patches.strict_img_size and patches.img_size != (size, size):
        raise UserError(_another_size(patches.img_size, size, option))
    side = max(patches.patch_size)
    if size % side and not patches.dynamic_img_pad:
        raise UserError(f"This network has patches of {side} px, and {option} is {size}: use a multiple of {side}.")


def _another_size(built: tuple[int, int], size: int, option: str) -> str:
    height, width = built
    return (
        f"This network takes images of {height}×{width} px, and {option} is {size}. Set {option} to {height}; or add "
        "dynamic_img_size: true to the backbone's args (backbone.args.dynamic_img_size, or --arg "
        f"dynamic_img_size=true), with which a ViT takes other sizes too; img_size: {size} there is for weights that "
        "were trained at that size."
    )


def _patches(net: Any) -> PatchEmbed | None:
    return next((part for part in net.modules() if isinstance(part, PatchEmbed)), None)


def check_size(net: Any) -> None:
    """Refuse a ViT that takes images of one size only.

    Raises:
        UserError: it is such a model; any other passes.
    """
    if is_vit(net) and not net.dynamic_img_size:
        raise UserError(
            "Crops of several sizes need a ViT that takes them: add dynamic_img_size: true to backbone.args."
        )
