"""Starting a training from a generator that is trained already: the one inside the package, or one's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from genview.encoders.token_encoder import weights_folder
from genview.errors import UserError
from genview.generators.fit import TokenDiffusion
from genview.generators.token_diffusion import Denoiser, load_layout, read_sampling
from genview.store.parts import differences


def start_from(lesson: TokenDiffusion, name: str, *, encoder: bool = True) -> None:
    """Give a lesson the weights of the generator `name`, 'natural' or a folder that `fit-generator` made.

    With its encoder comes the code: it is kept as it is, because its channels have an order and signs that a code
    fitted anew would not have, and the network reads just these. Where the lesson has more channels of detail, those
    beyond are left for `fit_code`, and the network gives them no weight yet.

    Args:
        lesson: has the same architecture, or more channels of detail.
        name: as in `generator.weights`.
        encoder: take the encoder and its code too; without, the network alone, and the code is fitted as usual.

    Raises:
        UserError: there is no such generator, it has another architecture, or it is a student.
    """
    folder = weights_folder(name)
    _, found, _, _ = load_layout(folder, lesson.settings.size)
    if read_sampling(folder).distilled:
        raise UserError(
            f"'{name}' (fit.start_from) was distilled to few steps: start from what it was distilled from."
        )
    theirs, mine = (_architecture(denoiser) for denoiser in (found, lesson.denoiser))
    known = theirs["encoder"]["detail_channels"]
    added = mine["encoder"]["detail_channels"] - known
    if encoder and added > 0:
        theirs["encoder"]["detail_channels"] += added
    said = list(differences(theirs, mine))
    if said:
        raise UserError(
            f"The generator '{name}' to start from (fit.start_from) has another architecture ({'; '.join(said)}). "
            "Put these settings as they are there, or set fit.start_from=null."
        )
    try:
        if encoder:
            lesson.denoiser.load_state_dict(_widened(found, max(added, 0)))
            lesson.known_detail = known
        else:
            lesson.denoiser.unet.load_state_dict(found.unet.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"The generator '{name}' (fit.start_from) has other weights than this one: {error}"
        ) from error


def _widened(denoiser: Denoiser, added: int) -> dict[str, Tensor]:
    """Return the weights of a denoiser with room for more channels of detail, filled with zeros."""
    state, known = denoiser.state_dict(), denoiser.encoder.settings.detail_channels
    first = denoiser.unet.config.in_channels - known - denoiser.encoder.settings.gist_channels - 1
    for name, axis, end in (
        ("encoder.detail.weight", 0, known),
        ("encoder.detail.bias", 0, known),
        ("encoder.sketch.weight", 1, known),
        ("unet.conv_in.weight", 1, first + known),  # after pixels, guess and detail come gist and ᾱ: see `correction`
    ):
        weight = state[name]
        before, after = weight.tensor_split([end], dim=axis)
        room = weight.new_zeros(*weight.shape[:axis], added, *weight.shape[axis + 1 :])
        state[name] = torch.cat([before, room, after], dim=axis)
    return state


def _architecture(denoiser: Denoiser) -> dict[str, Any]:
    """Return what decides names and shapes of weights, and what they mean, by the names of the settings."""
    config = denoiser.unet.config
    network = {"widths": list(config.block_out_channels), "layers": config.layers_per_block, "patch": denoiser.patch}
    encoder = asdict(denoiser.encoder.settings)
    return {"encoder": _plain(encoder), "fit": {"network": network}}


def _plain(value: Any) -> Any:
    """Tuples as lists: a file has only these."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
