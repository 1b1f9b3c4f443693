"""A moving average of the weights that are trained, which is what a generator is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """Average over the last ninth of the steps so far, and at most over 1/(1 − decay) steps.

    A decay that is constant from the start would keep the first, random weights in the average for thousands of
    steps: 0.9995 still gives them 61 % after 1000. What is not trained is not averaged, and not held twice.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._weights = [p for p in module.parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of another step in; those of the first are taken as they are."""
        count = self.count
        share = 1 - min(self.decay, (1 + count) / (10 + count)) if count else 1.0
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._weights], share)
        self.count += 1

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Within, the module has the average for its weights."""
        own = [p.data for p in self._weights]
        self._wear(self._averages)
        try:
            yield
        finally:
            self._wear(own)

    def _wear(self, values: list[torch.Tensor]) -> None:
        for p, value in zip(self._weights, values, strict=True):
            p.data = value

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name, and the number of steps."""
        return {"count": self.count, "weights": dict(zip(self._names, self._averages, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            KeyError, ValueError, RuntimeError: it is of another module.
        """
        self.count = int(state["count"])
        if state["weights"].keys() != set(self._names):
            raise ValueError("the averaged weights have other names")
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state["weights"][name])
