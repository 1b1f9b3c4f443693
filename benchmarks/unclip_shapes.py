"""Stable unCLIP with random weights, at its full size or with a tenth of its channels, in the layout of diffusers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Shapes:
    """Sizes of the networks; `size` is the side in pixels that the UNet was made for."""

    words: str
    size: int
    unet: tuple[int, ...]
    heads: tuple[int, ...]
    text: tuple[int, int, int]
    """Width, layers and heads of the text encoder."""
    vision: tuple[int, int, int]
    """Width, layers and heads of the image encoder."""
    embedding: int
    vae: tuple[int, ...]
    norm_groups: int = 32


FULL = Shapes(
    "the shapes of Stable unCLIP 2.1 (768 px)",
    size=768,
    unet=(320, 640, 1280, 1280),
    heads=(5, 10, 20, 20),
    text=(1024, 23, 16),
    vision=(1280, 32, 16),
    embedding=1024,
    vae=(128, 256, 512, 512),
)
TENTH = Shapes(
    "the shapes of Stable unCLIP 2.1 with a tenth of the channels (128 px)",
    size=128,
    unet=(32, 64, 128, 128),
    heads=(1, 1, 2, 2),
    text=(96, 23, 4),
    vision=(128, 32, 4),
    embedding=96,
    vae=(16, 32, 64, 64),
    norm_groups=8,
)


def random_pipeline(shapes: Shapes, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Path:
    """Make the pipeline with random weights and save it; return its folder."""
    import diffusers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor

    with torch.device(device):
        unet, vae = _unet(shapes), _vae(shapes)
        text, vision = _text(shapes), _vision(shapes)
        normalizer = StableUnCLIPImageNormalizer(shapes.embedding)
    for net in (unet, vae, text, vision, normalizer):
        nn.Module.to(net, dtype=dtype)
    pipeline: Any = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(),
        image_encoder=vision,
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=_tokenizer(folder.parent / "words"),
        text_encoder=text,
        unet=unet,
        scheduler=diffusers.PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        vae=vae,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet(shapes: Shapes) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=shapes.size // 8,
        block_out_channels=shapes.unet,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=shapes.text[0],
        attention_head_dim=shapes.heads,
        norm_num_groups=shapes.norm_groups,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * shapes.embedding,
        use_linear_projection=True,
    )


def _vae(shapes: Shapes) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=shapes.vae,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=shapes.norm_groups,
        scaling_factor=0.18215,
    )


def _text(shapes: Shapes) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    width, layers, heads = shapes.text
    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=width,
    )
    return CLIPTextModel(config)


def _vision(shapes: Shapes) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, layers, heads = shapes.vision
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=224,
        patch_size=14,
        projection_dim=shapes.embedding,
    )
    return CLIPVisionModelWithProjection(config)


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefg", *(f"{letter}</w>" for letter in "abcdefg")]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    return CLIPTokenizer.from_pretrained(folder)
