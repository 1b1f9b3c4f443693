"""diffusers' UNet as the sampler calls it: in its own precision, compiled or not, and not always all of it.

Neighbouring steps see nearly the same deep features (DeepCache: Ma et al., 2024). With `reuse` n, one call in n
runs the whole network, and the others only its first convolution and last layer, on the deep features of the last
whole call: a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from genview.errors import UserError

Known = Mapping[str, Tensor]
"""What the UNet is told: `encoder_hidden_states` B×N×D (text) and, where it takes them, `class_labels` B×C,
`image_embeds` B×E and `image_tokens` B×M×D, which attention sees beside the text."""


class Unet:
    """A frozen `UNet2DConditionModel`.

    Args:
        net: the network, in the precision it is to run in.
        reuse: of so many calls one runs the whole network; 1 is always.
        compiled: on a GPU, let torch.compile build kernels for every shape that comes. On a CPU they were ten times
            as slow as PyTorch's own when we measured, and are left out.

    Raises:
        UserError: `reuse` is wanted of a network whose first and last blocks are not those of Stable Diffusion.
    """

    def __init__(self, net: Any, *, reuse: int = 1, compiled: bool = False) -> None:
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.reuse, self.compiled = reuse, compiled
        if reuse > 1 and not _can_reuse(net):
            raise UserError("generator.reuse works for UNets of Stable Diffusion's kind only: set it to 1.")
        self._parts = {part: torch.compile(part, dynamic=False) for part in (_forward, whole, outer)}

    def begin(self) -> Callable[[Tensor, Tensor, Known], Tensor]:
        """Return the network for one solution: noisy B×C×h×w, time and what is known → float32 prediction."""
        deep: Tensor | None = None
        calls = 0

        def run(x: Tensor, t: Tensor, known: Known) -> Tensor:
            nonlocal deep, calls
            dtype = self.net.dtype
            x = x.to(dtype, memory_format=torch.channels_last)
            given = {name: value.to(dtype) for name, value in known.items()}
            if self.reuse == 1:
                prediction = self._built(_forward)(self.net, x, t, given)
            elif calls % self.reuse and deep is not None and len(deep) == len(x):
                prediction = self._built(outer)(self.net, x, t, given, deep)
            else:  # also where the batch has another size than before, as guidance ends
                prediction, deep = self._built(whole)(self.net, x, t, given)
            calls += 1
            found: Tensor = prediction.float()
            return found

        return run

    def _built(self, part: Callable[..., Any]) -> Callable[..., Any]:
        return self._parts[part] if self.compiled and self.net.device.type == "cuda" else part


def _forward(net: Any, x: Tensor, t: Tensor, known: Known) -> Tensor:
    rest = {name: known[name] for name in ("class_labels",) if name in known}
    added = {"image_embeds": known["image_embeds"]} if "image_embeds" in known else None
    prediction: Tensor = net(x, t, _text(known), added_cond_kwargs=added, return_dict=False, **rest)[0]
    return prediction


def whole(net: Any, x: Tensor, t: Tensor, known: Known) -> tuple[Tensor, Tensor]:
    """Run the whole network; return its prediction and the deep features that `outer` can start from."""
    emb, text = _embedded(net, x, t, known)
    x = net.conv_in(x)
    skips = [x]
    for block in net.down_blocks:
        x, more = _block(block, x, emb, text)
        skips += more
    x = net.mid_block(x, emb, encoder_hidden_states=text)
    for block in net.up_blocks[:-1]:
        skips, used = skips[: -len(block.resnets)], tuple(skips[-len(block.resnets) :])
        x = _block(block, x, emb, text, res_hidden_states_tuple=used)
    last = net.up_blocks[-1]
    for i, skip in enumerate(reversed(skips[1:])):
        x = _layer(last, i, torch.cat([x, skip], dim=1), emb, text)
    return _last_layer(net, x, skips[0], emb, text), x


def outer(net: Any, x: Tensor, t: Tensor, known: Known, deep: Tensor) -> Tensor:
    """Run the first convolution and the last layer alone, on deep features of another call."""
    emb, text = _embedded(net, x, t, known)
    return _last_layer(net, deep, net.conv_in(x), emb, text)


def _last_layer(net: Any, x: Tensor, skip: Tensor, emb: Tensor, text: Any) -> Tensor:
    x = _layer(net.up_blocks[-1], -1, torch.cat([x, skip], dim=1), emb, text)
    prediction: Tensor = net.conv_out(net.conv_act(net.conv_norm_out(x)))
    return prediction


def _embedded(net: Any, x: Tensor, t: Tensor, known: Known) -> tuple[Tensor, Any]:
    """Embedding of the time and whatever is added to it, and what attention sees."""
    emb = net.time_embedding(net.get_time_embed(x, t))
    added = net.get_class_embed(x, known.get("class_labels"))
    return emb if added is None else emb + added, _text(known)


def _text(known: Known) -> Any:
    """Text alone, or with image tokens in the form that diffusers' processors of IP-Adapter take."""
    text = known.get("encoder_hidden_states")
    return (text, [known["image_tokens"]]) if "image_tokens" in known else text


def _block(block: Any, x: Tensor, emb: Tensor, text: Any, **more: Any) -> Any:
    if getattr(block, "has_cross_attention", False):
        more["encoder_hidden_states"] = text
    return block(hidden_states=x, temb=emb, **more)


def _layer(block: Any, i: int, x: Tensor, emb: Tensor, text: Any) -> Tensor:
    """Residual block `i` of a down or up block, and its attention where it has one."""
    x = block.resnets[i](x, emb)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[i](x, encoder_hidden_states=text, return_dict=False)[0]
    return x


def _can_reuse(net: Any) -> bool:
    first, last = type(net.down_blocks[0]).__name__, type(net.up_blocks[-1]).__name__
    return first in ("CrossAttnDownBlock2D", "DownBlock2D") and last in ("CrossAttnUpBlock2D", "UpBlock2D")
