"""Weights of the soft and of the hard term of each token.

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
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats

__all__ = ["WEIGHTINGS", "Weighting", "Weights"]

Weights = Tensor | tuple[Tensor, Tensor]
"""w_s, with w_h = 1 - w_s; or both."""


class Weighting(NamedTuple):
    """The weights of a token's terms and the features that they read."""

    features: Feature
    weights: Callable[[VocabStats, float], Weights]
    """(statistics, progress in [0, 1]) -> w_s [N] in [0, 1], or (w_s, w_h), each at least 0;
    floating, on the statistics' device"""
    power_exponent: float = 1.0
    """Exponent of `teacher_power_sum`; read only with Feature.POWER_SUM."""


def _static(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w_s = soft_weight, w_h = hard_weight or 1 - w_s."""

    def weights(stats: VocabStats, progress: float) -> Weights:
        soft = torch.full_like(stats.student_lse, config.soft_weight)
        if config.hard_weight is None:
            return soft
        return soft, torch.full_like(soft, config.hard_weight)

    return Weighting(Feature(0), weights)


def _confidence(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w_s = 1 - max_v p_v, or 1 - p(label)."""
    of_label = config.confidence == "label"
    name = "teacher_label_logprob" if of_label else "teacher_max_logprob"

    def weights(stats: VocabStats, progress: float) -> Tensor:
        # expm1 keeps the digits of a small w; the clamp is for log p rounded to above 0.
        return -torch.expm1(stats.require(name).clamp(max=0.0))

    return _or_reversed(config, Weighting(FEATURE_OF[name], weights))


def _entropy(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w_s = H_T / log V, or the Tsallis form, which tends to it for gamma -> 1.

    The clamps are for rounding: a uniform teacher's entropy may exceed log V by an ulp.
    """
    log_vocab = math.log(vocab_size)
    if config.entropy == "shannon":
        shannon = Weighting(
            Feature.TEACHER_ENTROPY,
            lambda stats, progress: (stats.require("teacher_entropy") / log_vocab).clamp(0.0, 1.0),
        )
        return _or_reversed(config, shannon)
    # V^(1 - gamma) - 1: what sum p^gamma - 1 is for the uniform teacher; negative for gamma > 1.
    maximum = math.expm1((1.0 - config.tsallis_gamma) * log_vocab)
    tsallis = Weighting(
        Feature.POWER_SUM,
        lambda stats, progress: ((stats.require("teacher_power_sum") - 1.0) / maximum).clamp(
            0.0, 1.0
        ),
        power_exponent=config.tsallis_gamma,
    )
    return _or_reversed(config, tsallis)


def _or_reversed(config: ObjectiveConfig, weighting: Weighting) -> Weighting:
    """`weighting`, or the control in which its two weights change places."""
    if not config.reversed:
        return weighting

    def weights(stats: VocabStats, progress: float) -> Weights:
        soft = weighting.weights(stats, progress)
        assert isinstance(soft, Tensor)
        return 1.0 - soft, soft

    return weighting._replace(weights=weights)


def curriculum_weight(config: ObjectiveConfig, progress: float) -> float:
    """w_s rises from 0 to soft_weight over the first curriculum_fraction of the run; reversed, it
    falls from 1."""
    ramp = min(progress / config.curriculum_fraction, 1.0)
    return 1.0 - ramp * (1.0 - config.soft_weight) if config.reversed else config.soft_weight * ramp


def _curriculum(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """w_s by the progress alone."""
    return Weighting(
        Feature(0),
        lambda stats, progress: torch.full_like(
            stats.student_lse, curriculum_weight(config, progress)
        ),
    )


# The reference release keeps probabilities above 1e-8, and logarithms of the teacher's away from 0.
_LEAST_LOGPROB = math.log(1e-8)
_LEAST_SIZE = 1e-8
_LARGEST_RATIO = 10.0


def _wsl(config: ObjectiveConfig, vocab_size: int) -> Weighting:
    """Weighted soft labels: w_h = 1, w_s = soft_weight * omega with
    omega = 1 - exp(-log q(label) / log p(label)), which is near 0 where the student already knows
    the label as well as the teacher.

    Source: Zhou et al. 2021, "Rethinking soft labels for knowledge distillation", eq. 12; bounds
    as in the reference release.
    """

    def weights(stats: VocabStats, progress: float) -> Weights:
        student = stats.require("student_label_logprob").clamp(min=_LEAST_LOGPROB)
        teacher = stats.require("teacher_label_logprob").clamp(min=_LEAST_LOGPROB, max=-_LEAST_SIZE)
        ratio = (student / teacher).clamp(-_LARGEST_RATIO, _LARGEST_RATIO)
        omega = torch.exp(-ratio) if config.reversed else -torch.expm1(-ratio)
        return config.soft_weight * omega.clamp(0.0, 1.0), torch.ones_like(omega)

    return Weighting(Feature.TEACHER | Feature.LABEL, weights)


WEIGHTINGS: Mapping[str, Callable[[ObjectiveConfig, int], Weighting]] = MappingProxyType(
    {
        "static": _static,
        "confidence": _confidence,
        "entropy": _entropy,
        "curriculum": _curriculum,
        "wsl": _wsl,
    }
)
