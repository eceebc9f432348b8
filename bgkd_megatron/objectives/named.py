"""Objectives that the kernels evaluate themselves (csrc/core/objective.h), as they take them."""

from __future__ import annotations

import math
from typing import NamedTuple

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.weighting import curriculum_weight

__all__ = ["NamedObjective", "named_objective"]

# Enumerations of csrc/core/objective.h.
_SOFT_TERM = {"none": 0, "forward_kl": 1, "reverse_kl": 2, "adaptive_kl": 3}
_WEIGHTING = {"constant": 0, "maximum": 1, "label": 2, "shannon": 3, "tsallis": 4, "wsl": 5}
# Drawn labels come in the place of the data's.
_HARD_LABEL = {"data": 0, "teacher_sample": 0, "random": 0, "teacher_argmax": 1}


class NamedObjective(NamedTuple):
    """The last arguments of the operators fused_loss_ and merge_loss, in their order.

    With u in [0, 1], a number of each token: w_s = soft_offset + soft_slope u, and w_h alike.
    """

    soft_term: int
    softened: bool
    adaptive_mu: float
    adaptive_detach: bool
    weighting: int
    """What u is."""
    entropy_maximum: float
    soft_offset: float
    soft_slope: float
    hard_offset: float
    hard_slope: float
    hard_label: int
    entropy_regularizer: float


class _Weights(NamedTuple):
    """Each weight is (offset, slope)."""

    of: str
    soft: tuple[float, float]
    hard: tuple[float, float]


_U, _REST = (0.0, 1.0), (1.0, -1.0)


def named_objective(
    config: ObjectiveConfig, vocab_size: int, progress: float
) -> NamedObjective | None:
    """The objective of `config` at this part of the run.  None where no function of one token's
    statistics is the loss: a soft term of the second sweep (`fdivergence`: its sum is not known
    before it), and the risk-guided hard term, which reads the next position.
    """
    if config.couples_positions or (config.has_soft_term and config.fdivergence is not None):
        return None
    soft_term = "none"
    weights = _Weights("constant", (0.0, 0.0), _constant(config, 0.0).hard)
    if config.has_soft_term:
        soft_term = config.kl or config.soft
        weights = _weights(config, progress)
    return NamedObjective(
        soft_term=_SOFT_TERM[soft_term],
        softened=config.has_soft_term and config.is_softened,
        adaptive_mu=config.adaptive_mu,
        adaptive_detach=config.adaptive_detach,
        weighting=_WEIGHTING[weights.of],
        entropy_maximum=_entropy_maximum(config, vocab_size),
        soft_offset=config.soft_scale * weights.soft[0],
        soft_slope=config.soft_scale * weights.soft[1],
        hard_offset=weights.hard[0],
        hard_slope=weights.hard[1],
        hard_label=_HARD_LABEL[config.hard_label],
        entropy_regularizer=config.entropy_regularizer,
    )


def _weights(config: ObjectiveConfig, progress: float) -> _Weights:
    """As in weighting.py, without soft_scale."""
    match config.weighting:
        case "static":
            return _constant(config, config.soft_weight)
        case "curriculum":
            return _constant(config, curriculum_weight(config, progress))
        case "wsl":
            w = config.soft_weight
            return _Weights("wsl", (w, -w) if config.reversed else (0.0, w), (1.0, 0.0))
        case "confidence":
            of = str(config.confidence)
        case "entropy":
            of = str(config.entropy)
    return _Weights(of, _REST, _U) if config.reversed else _Weights(of, _U, _REST)


def _constant(config: ObjectiveConfig, weight: float) -> _Weights:
    """u = 1, so that 1 - w_s is taken of the rounded w_s."""
    rest = (1.0, -weight) if config.hard_weight is None else (config.hard_weight, 0.0)
    return _Weights("constant", (0.0, weight), rest)


def _entropy_maximum(config: ObjectiveConfig, vocab_size: int) -> float:
    """Of the uniform teacher; negative for gamma > 1."""
    if config.entropy == "shannon":
        return math.log(vocab_size)
    return math.expm1((1.0 - config.tsallis_gamma) * math.log(vocab_size))
