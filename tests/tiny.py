"""Small randomly initialised networks of the classes that diffusers' pipelines are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


def tiny_vision(width: int) -> Any:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=width,
    )
    net = CLIPVisionModelWithProjection(config)
    with torch.no_grad():  # as created, a LayerNorm does nothing that could be left out or done twice
        net.vision_model.post_layernorm.weight.uniform_(0.5, 2)
        net.vision_model.post_layernorm.bias.uniform_(-1, 1)
    return net.eval()


def tiny_tokenizer(folder: Path) -> Any:
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefg", *(f"{letter}</w>" for letter in "abcdefg")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    return CLIPTokenizer.from_pretrained(folder)


def tiny_text() -> Any:
    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def tiny_unet(width: int) -> Any:
    net: Any = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * width,
        use_linear_projection=True,
    )
    return net.eval()


def tiny_vae() -> Any:
    net: Any = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.18215,
    )
    return net.eval()


def tiny_plain_unet() -> Any:
    """As `tiny_unet`, told nothing but text."""
    net: Any = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
    )
    return net.eval()


def tiny_statistics(width: int, *, identity: bool) -> Any:
    normalizer = StableUnCLIPImageNormalizer(width)
    if not identity:
        normalizer.mean.data.uniform_(-1, 1)
        normalizer.std.data.uniform_(0.3, 2)
    return normalizer


def tiny_unclip(folder: Path, width: int, *, identity: bool) -> None:
    """Save a Stable unCLIP; `identity` is the H variant, whose embeddings are left as they are, else L."""
    made: Any = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        image_encoder=tiny_vision(width),
        image_normalizer=tiny_statistics(width, identity=identity),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tiny_tokenizer(folder.parent / "words"),
        text_encoder=tiny_text(),
        unet=tiny_unet(width),
        scheduler=diffusers.PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        vae=tiny_vae(),
    )
    made.save_pretrained(folder)
