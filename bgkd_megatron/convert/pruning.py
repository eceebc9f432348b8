"""Removing whole layers from a model: the cheapest student that shares its teacher's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from bgkd_megatron.megatron.model_config import ModelConfig

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def parse_layers(text: str, num_layers: int) -> frozenset[int]:
    """The 0-based layers in "14-19" or "3,7-9" (ranges include both ends).

    Raises ValueError for another form, for layers that the model lacks, and when none would remain.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f'layers must be given as "14-19" or "3,7-9", got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"layers of a range must go up, got {part.strip()!r}")
        if last >= num_layers:
            raise ValueError(f"layers to drop must be in 0-{num_layers - 1}, got {part.strip()!r}")
        layers.update(range(first, last + 1))
    if len(layers) == num_layers:
        raise ValueError(
            f"layers to drop must be some but not all of 0-{num_layers - 1}, got {text!r}"
        )
    return frozenset(layers)


def drop_layers(config: ModelConfig, layers: frozenset[int]) -> ModelConfig:
    """The configuration without `layers`."""
    return config.model_copy(update={"num_layers": config.num_layers - len(layers)})


class RemainingLayers(Mapping[str, Tensor]):
    """A view of Hugging Face `weights` without `dropped` layers, the others numbered anew."""

    def __init__(self, weights: Mapping[str, Tensor], dropped: frozenset[int]) -> None:
        self._weights = weights
        self._old_name: dict[str, str] = {}
        for name in weights:
            match = _LAYER.fullmatch(name)
            if match is None:
                self._old_name[name] = name
            elif (layer := int(match[1])) not in dropped:
                new_layer = layer - sum(one < layer for one in dropped)
                self._old_name[f"model.layers.{new_layer}.{match[2]}"] = name

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._old_name[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._old_name)

    def __len__(self) -> int:
        return len(self._old_name)
