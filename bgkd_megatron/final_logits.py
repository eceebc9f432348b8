"""What some models do to the logits after the output layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["NO_CHANGE", "FinalLogits"]


class FinalLogits(NamedTuple):
    """softcap * tanh(scale * logits / softcap), element by element; Gemma 2 has a soft-cap, Cohere
    and Granite a scale."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The same tensor where there is nothing to do."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * (logits / self.softcap).tanh()
        return logits


NO_CHANGE = FinalLogits()
