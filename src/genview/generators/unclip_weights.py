"""Find, check and read the weights of Stable unCLIP in the layout of diffusers; nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genview.encoders.clip import ClipTower
from genview.errors import UserError

SOURCES = (
    "sd2-community/stable-diffusion-2-1-unclip",
    "stabilityai/stable-diffusion-2-1-unclip",
    "diffusers/stable-diffusion-2-1-unclip-i2i-h",
    "fusing/stable-unclip-2-1-h-img2img",
)
"""Where the H variant has been published, the likeliest first: its makers withdrew their repository in 2025."""

PARTS = (
    "feature_extractor",
    "image_encoder",
    "image_normalizer",
    "image_noising_scheduler",
    "tokenizer",
    "text_encoder",
    "unet",
    "scheduler",
    "vae",
)
SOLVERS = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True)
class UnclipParts:
    """What sampling needs: `mean` and `std` 1×E, `alphas_cumprod` of the embedding's noise, `text` 2×N×D.

    `text` holds the empty prompt, for the unconditional half of guidance, and then the prompt.
    """

    encoder: ClipTower
    mean: Tensor
    std: Tensor
    alphas_cumprod: Tensor
    text: Tensor
    unet: Any
    vae: Any
    scheduler: Any


def find_weights(weights: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the folder of the weights, fetched where they are not here yet, and a name that says which they are.

    Raises:
        UserError: there is no such folder and no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    if weights and Path(weights).is_dir():
        return Path(weights), Path(weights).resolve().name
    layout = ["model_index.json", *(f"{part}/*" for part in PARTS)]
    unwanted = ["*.bin", "*.msgpack", "*.fp16.safetensors", "*.onnx*"]
    reasons = []
    for source in (weights,) if weights else SOURCES:
        try:
            found = snapshot_download(source, revision=revision, allow_patterns=layout, ignore_patterns=unwanted)
        except (OSError, ValueError) as error:
            reasons.append(f"{source} ({type(error).__name__})")
        else:
            return Path(found), f"{source}@{Path(found).name[:12]}"
    asked = f"generator.weights names no folder: '{weights}'. " if weights else ""
    raise UserError(
        f"{asked}Stable unCLIP could not be fetched from the Hugging Face hub; tried {', '.join(reasons)}. "
        "Get it where there is a network (`hf download "
        f"{SOURCES[0]} --local-dir FOLDER`) and point generator.weights at that folder: it should hold "
        f"model_index.json and {', '.join(PARTS)}."
    )


def check_layout(folder: Path) -> None:
    """Check that a folder is laid out as Stable unCLIP.

    Raises:
        UserError: it is something else or lacks a part; says what it is and what is missing.
    """
    try:
        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name", "no class")
    except FileNotFoundError:
        kind = "no class: the file is missing"
    except (OSError, ValueError, AttributeError) as error:
        kind = f"no class: it cannot be read ({error})"
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing or kind.startswith("no class"):
        raise UserError(
            f"{folder} is not a Stable unCLIP for images in the layout of diffusers. Its model_index.json names "
            f"{kind}; StableUnCLIPImg2ImgPipeline is wanted. Missing folders: {', '.join(missing) or 'none'}. "
            "Point generator.weights at a folder that `save_pretrained` of that pipeline wrote."
        )


def read_parts(folder: Path, name: str, prompt: str, solver: str, dtype: torch.dtype) -> UnclipParts:
    """Read every part of a checked folder; `name` becomes the encoder's, `solver` is a key of `SOLVERS`.

    Raises:
        UserError: weights are missing, damaged, incomplete, pickled or of several variants; the prompt is too long.
    """
    import diffusers

    parts = UnclipParts(
        encoder=_read_tower(folder, name, dtype),
        **_read_statistics(folder / "image_normalizer"),
        alphas_cumprod=_read_scheduler(diffusers.DDPMScheduler, folder / "image_noising_scheduler").alphas_cumprod,
        text=_read_text(folder, ["", prompt], dtype),
        unet=_read(diffusers.UNet2DConditionModel, folder / "unet", dtype),
        vae=_read(diffusers.AutoencoderKL, folder / "vae", dtype),
        scheduler=_read_solver(folder / "scheduler", solver),
    )
    takes, gives = parts.unet.config.projection_class_embeddings_input_dim, parts.encoder.width
    if parts.unet.config.class_embed_type != "projection" or takes != 2 * gives or parts.mean.shape[1] != gives:
        raise UserError(
            f"The parts in {folder} do not belong together: image_encoder gives embeddings of {gives} values, so "
            f"unet should take twice as many (it takes {takes}) and image_normalizer as many "
            f"({parts.mean.shape[1]}). Take all parts from one place."
        )
    return parts


def _read(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Read a frozen model of class `kind` from safetensors, with no weight missing."""
    try:
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise _unusable(folder, error) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights, {missing[0]} the first. Fetch it anew.")
    return model.to(dtype=dtype).eval().requires_grad_(False)


def _unusable(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} holds no usable safetensors weights ({' '.join(str(error).split())}). Pickled weights (.bin) are "
        "never read: convert them with `save_pretrained(FOLDER, safe_serialization=True)`, or fetch the folder anew."
    )


def _read_tower(folder: Path, name: str, dtype: torch.dtype) -> ClipTower:
    from transformers import CLIPVisionModelWithProjection

    file = folder / "feature_extractor" / "preprocessor_config.json"
    try:
        config = json.loads(file.read_text())
        mean, std = config["image_mean"], config["image_std"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} does not give image_mean and image_std ({error!r}). Fetch it anew.") from error
    return ClipTower(name, _read(CLIPVisionModelWithProjection, folder / "image_encoder", dtype), mean, std)


def _read_statistics(folder: Path) -> dict[str, Tensor]:
    """Mean and std 1×E of the embeddings, in float32; read as they lie, since diffusers is moving the class."""
    file = folder / "diffusion_pytorch_model.safetensors"
    try:
        found = safetensors.torch.load_file(file)
        return {"mean": found["mean"].float(), "std": found["std"].float()}
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise _unusable(folder, error) from error


def _read_scheduler(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no scheduler ({' '.join(str(error).split())}). Fetch it anew.") from error


def _read_solver(folder: Path, solver: str) -> Any:
    """Read the published noise schedule into the solver asked for, whichever it was published with."""
    import diffusers

    found = _read_scheduler(getattr(diffusers, SOLVERS[solver]), folder)
    if solver == "ddim":  # it would clip to [-1, 1], which is right for pixels and wrong for latents
        found.register_to_config(clip_sample=False)
    return found


@torch.no_grad()
def _read_text(folder: Path, prompts: list[str], dtype: torch.dtype) -> Tensor:
    """Encode prompts once, P×N×D; the text encoder is dropped thereafter."""
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'tokenizer'} holds no tokenizer ({error}). Fetch it anew.") from error
    encoder = _read(CLIPTextModel, folder / "text_encoder", dtype)
    longest = encoder.config.max_position_embeddings
    tokens = tokenizer(prompts, padding="max_length", max_length=longest, return_tensors=None)
    if (length := max(len(row) for row in tokens.input_ids)) > longest:
        raise UserError(f"generator.prompt is {length} tokens long; the text encoder reads {longest}. Shorten it.")
    mask = torch.tensor(tokens.attention_mask) if getattr(encoder.config, "use_attention_mask", False) else None
    encoded: Tensor = encoder(torch.tensor(tokens.input_ids), attention_mask=mask)[0]
    return encoded
