"""Soft terms: distances between teacher p and student q as functions of their statistics.

To add one: write a function of the configuration that returns it and enter it in `DIVERGENCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats

__all__ = ["DIVERGENCES", "Divergence"]


class Divergence(NamedTuple):
    """A soft term."""

    features: Feature
    """The features that it reads."""
    value: Callable[[VocabStats, float], Tensor]
    """(statistics, progress in [0, 1]) -> [N], nats"""


def _kl(config: ObjectiveConfig, plain: str) -> Divergence:
    """T^2 KL at temperature T; T^2 keeps the gradient's size independent of T (Hinton 2015)."""
    if not config.is_softened:
        return Divergence(FEATURE_OF[plain], lambda stats, progress: stats.require(plain))
    name = f"soft_{plain}"
    return Divergence(
        FEATURE_OF[name],
        lambda stats, progress: config.temperature_at(progress) ** 2 * stats.require(name),
    )


def _alpha_beta(config: ObjectiveConfig) -> Divergence:
    return _second_sweep(config) if config.kl is None else _kl(config, config.kl)


def _adaptive_kl(config: ObjectiveConfig) -> Divergence:
    """w KL(p||q) + (1 - w) KL(q||p): the wider model's distribution decides, H(q) > H(p) favours
    the forward one."""

    def value(stats: VocabStats, progress: float) -> Tensor:
        gap = stats.require("student_entropy") - stats.require("teacher_entropy")
        weight = torch.sigmoid(config.adaptive_mu * gap)
        if config.adaptive_detach:
            weight = weight.detach()
        forward, reverse = stats.require("forward_kl"), stats.require("reverse_kl")
        return weight * forward + (1.0 - weight) * reverse

    features = Feature.STUDENT_ENTROPY | Feature.FORWARD_KL | Feature.REVERSE_KL
    return Divergence(Feature.TEACHER | Feature.TEACHER_ENTROPY | features, value)


def _second_sweep(config: ObjectiveConfig) -> Divergence:
    return Divergence(Feature.TEACHER, lambda stats, progress: stats.require("fdivergence"))


def _skew_forward(config: ObjectiveConfig) -> Divergence:
    if not config.skew_cross_term:
        return _second_sweep(config)
    return Divergence(
        FEATURE_OF["teacher_entropy"],
        lambda stats, progress: stats.require("fdivergence") + stats.require("teacher_entropy"),
    )


DIVERGENCES: Mapping[str, Callable[[ObjectiveConfig], Divergence]] = MappingProxyType(
    {
        "forward_kl": lambda config: _kl(config, "forward_kl"),  # KL(p || q)
        "reverse_kl": lambda config: _kl(config, "reverse_kl"),  # KL(q || p)
        "alpha_beta": _alpha_beta,
        "adaptive_kl": _adaptive_kl,
        "jensen_shannon": _second_sweep,
        "skew_forward_kl": _skew_forward,
        "skew_reverse_kl": _second_sweep,
        "total_variation": _second_sweep,
    }
)
