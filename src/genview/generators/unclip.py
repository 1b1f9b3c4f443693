"""Stable unCLIP 2.1: the paper's generator. Models and schedulers are diffusers', the sampling is ours.

The pipeline object of diffusers takes one noise level and one guidance a call; here every row has its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import torch
from torch import Tensor
from torch.nn import functional as F

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.sampler import denoise, noise_for, noised_embedding, sinusoid, to_uint8

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
DECODED_AT_ONCE = 4
"""Latents decoded together: at 768 px the VAE, not the UNet, decides how much memory is needed."""


@dataclass(frozen=True)
class UnclipSettings:
    """Stable unCLIP as the paper ran it: 20 steps of PNDM at 768 px with guidance 10, no prompt, kept at 512 px.

    `weights` is a folder in the layout of diffusers or an id on the Hugging Face hub (at `revision`, where
    given); empty, the known sources are tried in order. `size` is the side in pixels at which views are made
    (the network's own where None) and `save_size` the side at which they are kept. `precision: auto` is
    bfloat16 on a GPU that has it, float16 on one that has not, float32 elsewhere.
    """

    kind: Literal["unclip"] = "unclip"
    weights: str = ""
    prompt: str = ""
    steps: int = 20
    guidance: float = 10.0
    size: int | None = None
    save_size: int = 512
    solver: Literal["pndm", "ddim", "dpm", "unipc"] = "pndm"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch: int = 8
    revision: str | None = None

    def load(self, device: torch.device | str) -> Unclip:
        """Find and read the weights, and encode the prompt.

        Raises:
            UserError: transformers is not installed, or the weights cannot be had or are not Stable unCLIP's.
        """
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("Stable unCLIP needs transformers: pip install 'genview[unclip]'.") from error
        folder, name = find_weights(self.weights, self.revision)
        check_layout(folder)
        return Unclip(folder, name, self, _dtype(self.precision, torch.device(device))).to(device)


class Unclip:
    """A `Generator` of views from CLIP embeddings, with Stable unCLIP's H (1024-d) or L (768-d) variant."""

    def __init__(self, folder: Path, name: str, settings: UnclipSettings, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        self.name = f"unclip/{name}"
        self.size = settings.save_size
        self.settings = settings
        self.encoder = _read_tower(folder, f"{self.name}/image_encoder", dtype)
        self._unet = _read(UNet2DConditionModel, folder / "unet", dtype)
        self._vae = _read(AutoencoderKL, folder / "vae", dtype)
        self._mean, self._std = _read_statistics(folder / "image_normalizer")
        self._alphas_cumprod = DDPMScheduler.from_pretrained(folder / "image_noising_scheduler").alphas_cumprod
        self._solver = _read_solver(folder / "scheduler", settings.solver)
        self._text = _read_text(folder, ["", settings.prompt], dtype)
        self._latent_shape = _latent_shape(self._unet.config, self._vae.config, settings.size)
        expected = self._unet.config.projection_class_embeddings_input_dim
        if expected != 2 * self.encoder.width:
            raise UserError(
                f"The parts in {folder} do not belong together: the UNet takes {expected} values of condition and "
                f"level, the image encoder gives {self.encoder.width} (half of that is right). Fetch them anew."
            )

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._unet.device
        return device

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self.encoder.to(device)
        self._unet.to(device)
        self._vae.to(device)
        self._text = self._text.to(device)
        return self

    @torch.no_grad()
    def sample(self, condition: Tensor, level: Tensor, guidance: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make one view a row; see `Generator.sample`. Levels go from 0 to 999.

        Raises:
            UserError: a level is out of range, or the precision does not carry these weights.
        """
        embedding_noise = noise_for(seeds, condition.shape[1:], "embedding")
        latents = noise_for(seeds, self._latent_shape, "latent")
        images = self.sample_from(condition, level, guidance, embedding_noise, latents)
        if not torch.isfinite(images).all():
            raise UserError(
                f"{self.name} overflowed in {self._unet.dtype}: set generator.precision to bfloat16 or float32."
            )
        images = images.clamp(-1, 1)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        return to_uint8(images).cpu()

    @torch.no_grad()
    def sample_from(
        self, condition: Tensor, level: Tensor, guidance: Tensor, embedding_noise: Tensor, latents: Tensor
    ) -> Tensor:
        """Make one view a row from given noise, as diffusers' own pipeline would with each row in its own call.

        Args:
            condition: embeddings B×E.
            level: noise levels B, 0…999.
            guidance: scales B; where all are 1 the UNet runs on half as many rows.
            embedding_noise: standard normal B×E.
            latents: standard normal B×C×h×w.

        Returns:
            float32 images B×3×H×W, not clamped, for a range of [-1, 1], on the generator's device.
        """
        level = level.cpu()
        noised = noised_embedding(
            condition.cpu(),
            level,
            embedding_noise.cpu(),
            self._alphas_cumprod,
            mean=self._mean,
            std=self._std,
        )
        known = torch.cat([noised, sinusoid(level, noised.shape[1])], dim=1).to(self._device)
        guided = bool((guidance != 1).any())

        def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            if not guided:
                return self._predict(x, t, known, self._text[1:]), None
            # Nothing known is a vector of zeros, its level included: that is what training dropped it to.
            both = torch.cat([torch.zeros_like(known), known])
            unconditional, conditional = self._predict(torch.cat([x, x]), t, both, self._text).chunk(2)
            return conditional, unconditional

        latents = latents.to(self._device, torch.float32)
        return self._decode(denoise(predict, self._solver, latents, self.settings.steps, guidance))

    def _predict(self, x: Tensor, t: Tensor, known: Tensor, text: Tensor) -> Tensor:
        """UNet on B rows of x and of condition with level; `text` holds as many prompts as x has equal parts."""
        dtype = self._unet.dtype
        text = text.repeat_interleave(len(x) // len(text), dim=0)
        found = self._unet(x.to(dtype), t, encoder_hidden_states=text, class_labels=known.to(dtype))
        prediction: Tensor = found.sample.float()
        return prediction

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = (latents / self._vae.config.scaling_factor).to(self._vae.dtype)
        return torch.cat([self._vae.decode(part).sample.float() for part in scaled.split(DECODED_AT_ONCE)])


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


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _read(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Read a frozen model of class `kind` from safetensors, with no weight missing.

    Raises:
        UserError: the weights are missing, damaged or incomplete.
    """
    try:
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder} holds no usable safetensors weights ({reason}). Pickled weights (.bin) are never read: "
            "convert them with `save_pretrained(FOLDER, safe_serialization=True)`, or fetch the folder anew."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights, {missing[0]} the first. Fetch it anew.")
    return model.to(dtype=dtype).eval().requires_grad_(False)


def _read_tower(folder: Path, name: str, dtype: torch.dtype) -> ClipTower:
    from transformers import CLIPVisionModelWithProjection

    file = folder / "feature_extractor" / "preprocessor_config.json"
    try:
        config = json.loads(file.read_text())
        mean, std = config["image_mean"], config["image_std"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} does not give image_mean and image_std ({error!r}). Fetch it anew.") from error
    return ClipTower(name, _read(CLIPVisionModelWithProjection, folder / "image_encoder", dtype), mean, std)


def _read_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation 1×E of the embeddings, always in float32."""
    try:
        from diffusers.models.others import StableUnCLIPImageNormalizer  # where it moves to in later versions
    except ImportError:
        pass
    ...
