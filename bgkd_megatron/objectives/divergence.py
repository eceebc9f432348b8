"""Soft terms: distances between teacher p and student q as functions of their statistics.

To add one: write a function of the configuration that returns it and enter it in `DIVERGENCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats

__all__ = ["DIVERGENCES", "Divergence"]


class Divergence(NamedTuple):
    """A soft term."""

    features: Feature
    """The features that it reads."""
    value: Callable[[VocabStats], Tensor]
    """statistics -> [N], nats"""


def _kl(config: ObjectiveConfig, plain: str) -> Divergence:
    """T^2 KL at temperature T; T^2 keeps the gradient's size independent of T (Hinton 2015)."""
    name, factor = plain, 1.0
    if config.temperature != 1.0:
        name, factor = f"soft_{plain}", config.temperature**2
    return Divergence(FEATURE_OF[name], lambda stats: factor * stats.require(name))


DIVERGENCES: Mapping[str, Callable[[ObjectiveConfig], Divergence]] = MappingProxyType(
    {
        "forward_kl": lambda config: _kl(config, "forward_kl"),  # KL(p || q)
        "reverse_kl": lambda config: _kl(config, "reverse_kl"),  # KL(q || p)
    }
)
