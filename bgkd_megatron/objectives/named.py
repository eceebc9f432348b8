"""Objectives that the kernels evaluate themselves (csrc/core/objective.h), as they take them."""

from __future__ import annotations

import math
from typing import NamedTuple

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.weighting import curriculum_weight

__all__ = ["NamedObjective", "named_objective"]

# Enumerations of csrc/core/objective.h.
_SOFT_TERM = {"forward_kl": 1, "reverse_kl": 2}
_SOFT_WEIGHT = {"static": 0, "curriculum": 0, "confidence": 1, "shannon": 2, "tsallis": 3}
# Drawn labels come in the place of the data's.
_HARD_LABEL = {"data": 0, "teacher_sample": 0, "random": 0, "teacher_argmax": 1}


class NamedObjective(NamedTuple):
    """The last arguments of the operators fused_loss_ and merge_loss, in their order."""

    soft_term: int
    softened: bool
    soft_weighting: int
    static_weight: float
    entropy_scale: float
    hard_label: int


def named_objective(
    config: ObjectiveConfig, vocab_size: int, progress: float
) -> NamedObjective | None:
    """The objective of `config` with a soft term, at this part of the run; None where it is not
    one of the kernels'."""
    is_plain = (
        config.hard == "cross_entropy"
        and config.hard_weight is None
        and config.soft_scale == 1.0
        and config.entropy_regularizer == 0.0
    )
    is_known = config.weighting == "curriculum" or (
        not config.reversed
        and config.weighting != "wsl"
        and (config.weighting != "confidence" or config.confidence == "maximum")
    )
    if config.kl is None or not is_plain or not is_known:
        return None
    weighting = config.entropy if config.weighting == "entropy" else config.weighting
    static_weight = config.soft_weight
    if weighting == "curriculum":
        static_weight = curriculum_weight(config, progress)
    entropy_scale = 0.0
    if weighting == "shannon":
        entropy_scale = 1.0 / math.log(vocab_size)
    elif weighting == "tsallis":
        entropy_scale = 1.0 / math.expm1((1.0 - config.tsallis_gamma) * math.log(vocab_size))
    return NamedObjective(
        _SOFT_TERM[config.kl],
        config.is_softened,
        _SOFT_WEIGHT[weighting],
        static_weight,
        entropy_scale,
        _HARD_LABEL[config.hard_label],
    )
