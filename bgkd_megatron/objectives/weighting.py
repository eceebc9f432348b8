"""Soft weights: how much of a token's loss is the soft term.

A weighting is a plain function of (statistics, progress).  To add one of the package: write a
function of (config, vocab_size) that returns it and enter it in `WEIGHTINGS`.  To use your own,
pass it to HybridObjective, for example

    def bridge(stats: VocabStats, progress: float) -> Tensor:  # soft only where the teacher doubts
        return (stats.require("teacher_entropy") > 1.0).float()

    HybridObjective(config, vocab_size, weighting=Weighting(Feature.TEACHER_ENTROPY, bridge))

Called without gradient.  Rows that are not valid have statistics 0; their weight is not read.
Shape, type and device of what it returns are checked at every call, the values never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.statistics import Feature, VocabStats

__all__ = ["WEIGHTINGS", "Weighting"]


class Weighting(NamedTuple):
    """A soft weight and the features that it reads."""

    features: Feature
    soft_weight: Callable[[VocabStats, float], Tensor]
    """(statistics, progress in [0, 1]) -> [N] floating, in [0, 1], on the statistics' device"""
    power_exponent: float = 1.0
    """Exponent of `teacher_power_sum`; read only with Feature.POWER_SUM."""


def _static(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w = soft_weight."""
    return Weighting(
        Feature(0), lambda stats, progress: torch.full_like(stats.student_lse, config.soft_weight)
    )


def _confidence(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w = 1 - max_v p_v."""

    def soft_weight(stats: VocabStats, progress: float) -> Tensor:
        # expm1 keeps the digits of a small w; the clamp is for log p rounded to above 0.
        return -torch.expm1(stats.require("teacher_max_logprob").clamp(max=0.0))

    return Weighting(Feature.TEACHER, soft_weight)


def _entropy(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w = H_T / log V, or the Tsallis form, which tends to it for gamma -> 1.

    The clamps are for rounding: a uniform teacher's entropy may exceed log V by an ulp.
    """
    log_vocab = math.log(vocab_size)
    if config.entropy == "shannon":
        return Weighting(
            Feature.TEACHER_ENTROPY,
            lambda stats, progress: (stats.require("teacher_entropy") / log_vocab).clamp(0.0, 1.0),
        )
    # V^(1 - gamma) - 1: what sum p^gamma - 1 is for the uniform teacher; negative for gamma > 1.
    maximum = math.expm1((1.0 - config.tsallis_gamma) * log_vocab)
    return Weighting(
        Feature.POWER_SUM,
        lambda stats, progress: ((stats.require("teacher_power_sum") - 1.0) / maximum).clamp(
            0.0, 1.0
        ),
        power_exponent=config.tsallis_gamma,
    )


def _curriculum(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w = soft_weight * min(progress / curriculum_fraction, 1)."""

    def soft_weight(stats: VocabStats, progress: float) -> Tensor:
        ramp = min(progress / config.curriculum_fraction, 1.0)
        return torch.full_like(stats.student_lse, config.soft_weight * ramp)

    return Weighting(Feature(0), soft_weight)


WEIGHTINGS: Mapping[str, Callable[[ObjectiveConfig, int], Weighting]] = MappingProxyType(
    {
        "static": _static,
        "confidence": _confidence,
        "entropy": _entropy,
        "curriculum": _curriculum,
    }
)
