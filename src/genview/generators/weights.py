"""Find, check and read weights in the layout of diffusers; nothing is unpickled and no code in them is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.latent import SOLVERS
from genview.generators.lora import Lora
from genview.generators.text import TextTower


def find_weights(
    weights: str,
    revision: str | None,
    sources: Sequence[str],
    parts: Sequence[str],
    what: str,
    option: str = "weights",
) -> tuple[Path, str]:
    """Return the folder of the weights, fetched where they are not here yet, and a name that says which they are.

    Args:
        weights: a folder or a hub id; where empty, `sources` are tried in order.
        revision: branch or commit on the hub.
        sources: hub ids where `what` has been published, the likeliest first.
        parts: folders and files that are needed of a repository.
        what: the model in words.
        option: of the generator, where the user says which weights.

    Raises:
        UserError: there is no such folder and no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    if weights and Path(weights).is_dir():
        return Path(weights), Path(weights).resolve().name
    layout = ["model_index.json", *(part if Path(part).suffix else f"{part}/*" for part in parts)]
    unwanted = ["*.bin", "*.msgpack", "*.fp16.safetensors", "*.onnx*"]
    reasons = []
    for source in (weights,) if weights else sources:
        try:
            found = snapshot_download(source, revision=revision, allow_patterns=layout, ignore_patterns=unwanted)
        except (OSError, ValueError) as error:
            reasons.append(f"{source} ({type(error).__name__})")
        else:
            return Path(found), f"{source}@{Path(found).name[:12]}"
    asked = f"generator.{option} names no folder: '{weights}'. " if weights else ""
    raise UserError(
        f"{asked}{what} could not be fetched from the Hugging Face hub; tried {', '.join(reasons)}. "
        "Get it where there is a network (`hf download "
        f"{sources[0]} --local-dir FOLDER`) and point generator.{option} at that folder: it should hold "
        f"{', '.join(parts)}."
    )


def check_layout(folder: Path, pipeline: str, parts: Sequence[str], option: str = "weights") -> None:
    """Check that a folder has the parts of what diffusers calls `pipeline`; `option` of the generator names it.

    Raises:
        UserError: it is something else or lacks a part; says what it is and what is missing.
    """
    try:
        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name", "no class")
    except FileNotFoundError:
        kind = "no class: the file is missing"
    except (OSError, ValueError, AttributeError) as error:
        kind = f"no class: it cannot be read ({error})"
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing or kind.startswith("no class"):
        raise UserError(
            f"{folder} is not in the layout of diffusers' {pipeline}. Its model_index.json names {kind}; "
            f"{pipeline} is wanted. Missing folders: {', '.join(missing) or 'none'}. "
            f"Point generator.{option} at a folder that `save_pretrained` of that pipeline wrote."
        )


def read(kind: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """Read a frozen model of class `kind` (of diffusers or transformers) from safetensors, with no weight missing.

    Its numbers are of type `dtype`, or of the type that its makers chose where None.

    Raises:
        UserError: there are no safetensors, or they are damaged or incomplete.
    """
    try:
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise unusable(folder, error) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights, {missing[0]} the first. Fetch it anew.")
    # Their own `to` warns of parts to keep in float32 even where there are none.
    return nn.Module.to(model, dtype=dtype).eval().requires_grad_(False)


def read_unet(folder: Path, dtype: torch.dtype, lora: Lora | None = None) -> Any:
    """Read the UNet of `folder` and add a LoRA, if any, to it in float32: half precision would lose part of it.

    Raises:
        UserError: the weights cannot be read, or the LoRA is for another network.
    """
    import diffusers

    if lora is None:
        return read(diffusers.UNet2DConditionModel, folder / "unet", dtype)
    net = read(diffusers.UNet2DConditionModel, folder / "unet", torch.float32)
    lora.add_to(net, "unet")
    return nn.Module.to(net, dtype=dtype)


def unusable(folder: Path, error: Exception) -> UserError:
    """Return the error for weights that cannot be read."""
    return UserError(
        f"{folder} holds no usable safetensors weights ({' '.join(str(error).split())}). Pickled weights (.bin) are "
        "never read: convert them with `save_pretrained(FOLDER, safe_serialization=True)`, or fetch the folder anew."
    )


def read_tower(folder: Path, processor: Path | None, dtype: torch.dtype) -> ClipTower:
    """Read CLIP's image tower from `folder` and the statistics of its images from the folder `processor`.

    Without a `processor` they are CLIP's own. The tower is named after what it is, not where it was: generators that
    were published with the same tower share one analysis of the images.

    Raises:
        UserError: either cannot be read.
    """
    from transformers import CLIPVisionModelWithProjection

    mean, std = _statistics(processor) if processor else (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))
    net = read(CLIPVisionModelWithProjection, folder, None)
    return ClipTower(f"clip/{_fingerprint(net, [*mean, *std])}", nn.Module.to(net, dtype=dtype), mean, std)


def _statistics(processor: Path) -> tuple[list[float], list[float]]:
    file = processor / "preprocessor_config.json"
    try:
        config = json.loads(file.read_text())
        return config["image_mean"], config["image_std"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} does not give image_mean and image_std ({error!r}). Fetch it anew.") from error


def _fingerprint(net: nn.Module, numbers: Sequence[float]) -> str:
    """Digest of weights, in half precision: the same tower has been published in full precision and in half."""
    digest = hashlib.sha256(repr(list(numbers)).encode())
    for value in net.parameters():
        digest.update(value.detach().half().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_tensors(file: Path, names: Sequence[str]) -> list[Tensor]:
    """Read some tensors of a safetensors file, in float32.

    Raises:
        UserError: the file cannot be read or lacks one.
    """
    try:
        found = safetensors.torch.load_file(file)
        return [found[name].float() for name in names]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise unusable(file.parent, error) from error


def read_scheduler(kind: Any, folder: Path) -> Any:
    """Read a scheduler of class `kind`.

    Raises:
        UserError: there is none.
    """
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no scheduler ({' '.join(str(error).split())}). Fetch it anew.") from error


def read_solver(folder: Path, solver: str) -> Any:
    """Read the published noise schedule into the solver asked for, whichever it was published with."""
    import diffusers

    found = read_scheduler(getattr(diffusers, SOLVERS[solver]), folder)
    if solver in ("ddim", "lcm"):  # they would clip to [-1, 1], which is right for pixels and wrong for latents
        found.register_to_config(clip_sample=False)
    if solver == "dpm":  # it would look for a predicted variance in the last of three channels, as pixels have
        found.register_to_config(variance_type=None)
    return found


def read_text(folder: Path, default: Text, dtype: torch.dtype, lora: Lora | None = None) -> TextTower:
    """Read tokenizer and text encoder, and add a LoRA, if any, to the latter.

    Raises:
        UserError: one cannot be read, the LoRA is for another network, or the default prompt is too long.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'tokenizer'} holds no tokenizer ({error}). Fetch it anew.") from error
    net = read(CLIPTextModel, folder / "text_encoder", dtype if lora is None else torch.float32)
    if lora is not None:
        lora.add_to(net, "text_encoder")
    return TextTower(tokenizer, nn.Module.to(net, dtype=dtype), default)


def read_decoder(folder: Path, tiny: str, dtype: torch.dtype) -> Any:
    """Read the VAE of `folder`, or the AutoencoderTiny that `tiny` names (a folder or hub id).

    Raises:
        UserError: it cannot be had.
    """
    import diffusers

    if not tiny:
        return read(diffusers.AutoencoderKL, folder / "vae", dtype)
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    place, _ = find_weights(tiny, None, ["madebyollin/taesd"], files, "The tiny VAE", "tiny_vae")
    return read(diffusers.AutoencoderTiny, place, dtype)
