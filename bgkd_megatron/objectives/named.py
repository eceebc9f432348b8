"""Objectives that the kernels evaluate themselves (csrc/core/objective.h), as they take them."""

from __future__ import annotations

import math
from typing import NamedTuple

from bgkd_megatron.objectives.config import ObjectiveConfig

__all__ = ["NamedObjective", "named_objective"]

# Enumerations of csrc/core/objective.h.
_SOFT_TERM = {"forward_kl": 1, "reverse_kl": 2}
_SOFT_WEIGHT = {"static": 0, "curriculum": 0, "confidence": 1, "shannon": 2, "tsallis": 3}
_HARD_LABEL = {"data": 0, "teacher_argmax": 1}


class NamedObjective(NamedTuple):
    """The last arguments of the operators fused_loss_ and merge_loss, in their order."""

    soft_term: int
    softened: bool
    soft_weighting: int
    static_weight: float
    entropy_scale: float
    hard_label: int


def named_objective(config: ObjectiveConfig, vocab_size: int, progress: float) -> NamedObjective:
    """The objective of `config` with a soft term, at this part of the run."""
    weighting = config.entropy if config.weighting == "entropy" else config.weighting
    static_weight = config.soft_weight
    if weighting == "curriculum":
        static_weight *= min(progress / config.curriculum_fraction, 1.0)
    entropy_scale = 0.0
    if weighting == "shannon":
        entropy_scale = 1.0 / math.log(vocab_size)
    elif weighting == "tsallis":
        entropy_scale = 1.0 / math.expm1((1.0 - config.tsallis_gamma) * math.log(vocab_size))
    return NamedObjective(
        _SOFT_TERM[config.soft],
        config.temperature != 1.0,
        _SOFT_WEIGHT[weighting],
        static_weight,
        entropy_scale,
        _HARD_LABEL[config.hard_label],
    )
