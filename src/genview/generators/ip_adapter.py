"""Stable Diffusion 1.5 with an IP-Adapter (Ye et al., 2023): attention that sees image tokens beside the text.

The tokens are made of the CLIP embedding that Stable unCLIP's H variant takes, so both share one analysis of the
images. The network knows nothing of noise on the embedding; unCLIP's is added all the same, in units of each
embedding's root mean square, so that a level says how much of the embedding is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from genview.encoders.clip import ClipTower
from genview.errors import UserError
from genview.generators.generator import Text
from genview.generators.img2img import PARTS, SOURCES
from genview.generators.latent import LatentDiffusion, LatentSettings, precision_on
from genview.generators.lora import named, read_lora
from genview.generators.sampler import finished, noise_for, noised_in_proportion
from genview.generators.text import TextTower
from genview.generators.weights import (
    check_layout,
    find_weights,
    read_decoder,
    read_solver,
    read_text,
    read_tower,
    read_unet,
    unusable,
)

ADAPTERS = ("h94/IP-Adapter",)
IMAGE_ENCODER = "models/image_encoder"
NAMES = (("image_embeds", "proj"), ("norm", "norm"))
"""diffusers' names of what makes the tokens, and those of the published files."""


@dataclass(frozen=True)
class IpAdapterSettings(LatentSettings):
    """`weights` is a Stable Diffusion 1.5, `adapter` a folder or hub id with `adapter_file` and the image encoder.

    `scale` weighs what attention sees of the image against what it sees of the text. The other options are those of
    `LatentSettings`.
    """

    kind: Literal["ip_adapter"] = "ip_adapter"
    adapter: str = ""
    adapter_file: str = "models/ip-adapter_sd15.safetensors"
    scale: float = 1.0
    solver: Literal["pndm", "ddim", "dpm", "unipc", "lcm"] = "dpm"
    guidance: float = 5.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "balanced": {"steps": 12, "interval": (0.1, 0.6), "compile": True},
        "fast": {"steps": 8, "interval": (0.1, 0.6), "compile": True},
        "draft": {"steps": 6, "interval": (0.1, 0.6), "reuse": 2, "save_size": 256},
    }

    def load(self, device: torch.device | str) -> IpAdapter:
        """Find and read the weights, and encode the prompt.

        Raises:
            UserError: a number is out of range, transformers is not installed, the weights cannot be had, or they do
                not belong together.
        """
        self.check()
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError("IP-Adapter needs transformers: pip install 'genview[unclip]'.") from error
        folder, name = find_weights(self.weights, self.revision, SOURCES, PARTS, "Stable Diffusion")
        check_layout(folder, "StableDiffusionPipeline", PARTS)
        wanted = (self.adapter_file, IMAGE_ENCODER)
        adapter, of = find_weights(self.adapter, None, ADAPTERS, wanted, "IP-Adapter", "adapter")
        return _read(folder, adapter, f"ip_adapter/{name}/{of}", self, device).to(device)


def _read(
    folder: Path, adapter: Path, name: str, settings: IpAdapterSettings, device: torch.device | str
) -> IpAdapter:
    dtype, lora = precision_on(device, settings.precision), read_lora(settings.lora, settings.lora_scale)
    unet = read_unet(folder, dtype, lora)
    encoder = read_tower(adapter / IMAGE_ENCODER, None, dtype)
    project = add_adapter(unet, adapter / settings.adapter_file, encoder.width, settings.scale)
    decoder, solver = (
        read_decoder(folder, settings.tiny_vae, dtype),
        read_solver(folder / "scheduler", settings.solver),
    )
    text = read_text(folder, Text(settings.prompt, settings.negative), dtype, lora)
    return IpAdapter(named(name, lora), encoder, project, text, LatentDiffusion(unet, decoder, solver, settings))


def add_adapter(unet: Any, file: Path, width: int, scale: float) -> nn.Module:
    """Let every cross-attention of a UNet see image tokens too, and return what makes them.

    Args:
        unet: diffusers' `UNet2DConditionModel`; changed in place.
        file: in the published layout: `image_proj.proj` and `.norm`, and `ip_adapter.N.to_k_ip` and `.to_v_ip` for
            each cross-attention, N odd, in the order of diffusers' attention processors.
        width: of the embeddings.
        scale: by which the attention to image tokens is multiplied.

    Returns:
        A network B×width → B×M×D, in float32.

    Raises:
        UserError: the file cannot be read, holds another kind of adapter, or fits another UNet or encoder.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    found = _tensors(file)
    across: int = unet.config.cross_attention_dim
    project = _projection(found, file, width, across)
    processors = dict(unet.attn_processors)
    names = [name for name in processors if name.endswith("attn2.processor")]
    try:
        for i, name in enumerate(names):
            weights = {
                f"to_{part}_ip.0.weight": found[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] for part in "kv"
            }
            hidden = len(weights["to_k_ip.0.weight"])
            made: Any = IPAdapterAttnProcessor2_0(hidden, across, num_tokens=(4,), scale=scale)
            made.load_state_dict(weights)
            processors[name] = made.to(unet.dtype).requires_grad_(False)
            if hidden != unet.get_submodule(name.removesuffix(".processor")).to_k.out_features:
                raise ValueError(f"{name} has another width")
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} and the UNet do not belong together ({' '.join(str(error).split())}): the adapter was made for "
            "another Stable Diffusion. Set generator.weights to a Stable Diffusion 1.5, or take the adapter of yours."
        ) from error
    unet.set_attn_processor(processors)
    return project


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise unusable(file, error) from error


def _projection(found: Mapping[str, Tensor], file: Path, width: int, across: int) -> nn.Module:
    from diffusers.models.embeddings import ImageProjection

    names = {f"{ours}.{part}": f"image_proj.{name}.{part}" for ours, name in NAMES for part in ("weight", "bias")}
    if not set(names.values()) <= set(found):
        raise UserError(
            f"{file} is no adapter of the kind that takes one embedding an image; those called 'plus', 'full-face' "
            "and 'FaceID' take more. Use ip-adapter_sd15.safetensors or ip-adapter_sd15_light.safetensors."
        )
    rows, takes = found["image_proj.proj.weight"].shape
    if takes != width or rows % across or found["image_proj.norm.weight"].shape != (across,):
        raise UserError(
            f"{file} does not fit its neighbours: it turns embeddings of {takes} values into tokens of "
            f"{len(found['image_proj.norm.weight'])}; the image encoder gives {width}, the UNet takes {across}. Take "
            f"the adapter that was made for {IMAGE_ENCODER} and Stable Diffusion 1.5."
        )
    made: Any = ImageProjection(width, across, num_image_text_embeds=rows // across)
    made.load_state_dict({ours: found[theirs].float() for ours, theirs in names.items()})
    module: nn.Module = made.eval().requires_grad_(False)
    return module


class IpAdapter:
    """A `Generator` of views from CLIP embeddings, and from texts where there are any."""

    encoder: ClipTower

    def __init__(
        self, name: str, encoder: ClipTower, project: nn.Module, text: TextTower, diffusion: LatentDiffusion
    ) -> None:
        self.name, self.size = name, diffusion.settings.save_size
        self.encoder, self._project, self._text, self._diffusion = encoder, project, text, diffusion

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self.encoder.to(device)
        self._text.to(device)
        self._diffusion.to(device)
        return self

    def exact(self) -> IpAdapter:
        """Return this generator in float32; see `Generator.exact`."""
        other = copy.copy(self)
        other._diffusion = self._diffusion.exact()
        return other

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row; see `Generator.sample`. The level is unCLIP's noise level."""
        noise = noise_for(seeds, condition.shape[1:], "embedding")
        noised = noised_in_proportion(condition.cpu(), level.cpu(), noise)
        latents = noise_for(seeds, self._diffusion.latent_shape, "latent")
        return finished(self.sample_from(noised, guidance, latents, seeds, texts), self.size).cpu()

    @torch.no_grad()
    def sample_from(
        self,
        noised: Tensor,
        guidance: Tensor,
        latents: Tensor,
        seeds: Sequence[int] = (),
        texts: Sequence[Text] | None = None,
    ) -> Tensor:
        """Make one view a row from noised embeddings B×E and noise B×C×h×w.

        Returns:
            float32 images B×3×H×W, not clamped, for a range of [-1, 1], on the generator's device.
        """
        prompt, negative = self._text.rows(texts, len(noised))
        tokens, blank = self._project(noised), self._project(torch.zeros_like(noised))
        given = {"encoder_hidden_states": prompt, "image_tokens": tokens}
        nothing = {"encoder_hidden_states": negative, "image_tokens": blank}
        return self._diffusion.images(latents, guidance, given, nothing, seeds=seeds)
