"""Prompts as Stable Diffusion's UNets see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from genview.errors import UserError
from genview.generators.generator import Text

KEPT = 256
"""Encoded prompts that are kept for the next batch."""


class TextTower:
    """A frozen CLIP text encoder with its tokenizer; encodes a prompt once and keeps it for a while.

    Args:
        tokenizer: a CLIPTokenizer.
        net: a CLIPTextModel.
        default: what rows without a text of their own get.

    Raises:
        UserError: the default is too long.
    """

    def __init__(self, tokenizer: Any, net: Any, default: Text) -> None:
        self._tokenizer, self._net, self._default = tokenizer, net.eval().requires_grad_(False), default
        self._known: dict[str, Tensor] = {}
        self.encode(list(default))

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        self._net.to(device)
        self._known = {prompt: encoded.to(device) for prompt, encoded in self._known.items()}
        return self

    def rows(self, texts: Sequence[Text] | None, count: int) -> tuple[Tensor, Tensor]:
        """Return encoded prompts and negative prompts of `count` rows, B×N×D each.

        Raises:
            UserError: one is too long.
        """
        chosen = texts if texts is not None else [self._default] * count
        return self.encode([text.prompt for text in chosen]), self.encode([text.negative for text in chosen])

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode P prompts to P×N×D.

        Raises:
            UserError: one is too long.
        """
        if len(self._known) > KEPT:
            self._known.clear()
        if fresh := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            self._known |= dict(zip(fresh, self._encoded(fresh), strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])

    @torch.no_grad()
    def _encoded(self, prompts: list[str]) -> Tensor:
        config, device = self._net.config, self._net.device
        longest = config.max_position_embeddings
        tokens = self._tokenizer(prompts, padding="max_length", max_length=longest, return_tensors=None)
        lengths = [len(row) for row in tokens.input_ids]
        if (length := max(lengths)) > longest:
            prompt = prompts[lengths.index(length)]
            raise UserError(
                f"A prompt is {length} tokens long; the text encoder reads {longest}. Shorten it: '{prompt[:80]}'."
            )
        mask = None
        if getattr(config, "use_attention_mask", False):
            mask = torch.tensor(tokens.attention_mask, device=device)
        encoded: Tensor = self._net(torch.tensor(tokens.input_ids, device=device), attention_mask=mask)[0]
        return encoded
