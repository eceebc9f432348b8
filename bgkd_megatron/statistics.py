"""Per-token statistics of two categorical distributions: pure data, no computation.

Notation, for one token: student logits ``z_v`` and teacher logits ``t_v`` for the ids ``v`` of the
real (unpadded) vocabulary of size ``V``; ``L_S = logsumexp(z)``, ``L_T = logsumexp(t)``;
``q = exp(z - L_S)``, ``p = exp(t - L_T)``; label ``y``; temperature ``tau`` with
``q^tau = softmax(z / tau)``, ``p^tau = softmax(t / tau)``.  All logarithms are natural (nats).

Every loss of this package is a function of these statistics, so they are the one interface between
the kernels (which know no distillation) and the objectives (which know no logits).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, cast

from torch import Tensor

__all__ = ["FEATURE_OF", "Feature", "VocabStats"]


class Feature(enum.IntFlag):
    """What to compute and to communicate.

    ``L_S`` and ``argmax z`` are always there.  All but ``LABEL`` and ``STUDENT_ENTROPY`` read
    the teacher's logits and go together with ``TEACHER``.
    """

    TEACHER = 1
    LABEL = 2
    FORWARD_KL = 4
    REVERSE_KL = 8
    STUDENT_ENTROPY = 16
    TEACHER_ENTROPY = 32
    POWER_SUM = 64
    SOFTENED = 128

    @property
    def reads_teacher(self) -> bool:
        """Whether one of these reads the teacher's logits."""
        return bool(self & ~(Feature.LABEL | Feature.STUDENT_ENTROPY))


class VocabStats(NamedTuple):
    """Global statistics (over the whole vocabulary, not over one shard) of N tokens.

    Each field is a Tensor [N], float32 unless said otherwise, or None when its feature was not
    asked for.  A row that is not valid is never read: all its statistics are 0.  Those of the
    student and the KLs carry a gradient to the student's logits; those of the teacher none.

    Conventions: a term whose probability is 0 contributes 0 to a sum, so a token with a logit of
    -inf is absent from the vocabulary.  A student that excludes a token of the teacher has
    KL(p||q) = +inf, as it should; likewise the other way round.
    """

    valid: Tensor
    """bool: label != ignore_index; all True when there are no labels."""
    student_lse: Tensor
    """L_S"""
    student_argmax: Tensor
    """int64: argmax_v z_v, the lowest id on ties"""
    student_entropy: Tensor | None = None
    """H(q) = -sum_v q_v log q_v"""
    student_label_logprob: Tensor | None = None
    """log q_y"""
    teacher_lse: Tensor | None = None
    """L_T"""
    teacher_argmax: Tensor | None = None
    """int64: a = argmax_v t_v, the lowest id on ties"""
    teacher_max_logprob: Tensor | None = None
    """log p_a"""
    student_logprob_at_teacher_argmax: Tensor | None = None
    """log q_a"""
    teacher_entropy: Tensor | None = None
    """H(p) = -sum_v p_v log p_v"""
    teacher_label_logprob: Tensor | None = None
    """log p_y"""
    forward_kl: Tensor | None = None
    """KL(p||q) = sum_v p_v (log p_v - log q_v)"""
    reverse_kl: Tensor | None = None
    """KL(q||p)"""
    teacher_power_sum: Tensor | None = None
    """sum_v p_v^gamma, gamma = power_exponent"""
    soft_forward_kl: Tensor | None = None
    """KL(p^tau||q^tau), without a factor tau^2"""
    soft_reverse_kl: Tensor | None = None
    """KL(q^tau||p^tau), without a factor tau^2"""
    fdivergence: Tensor | None = None
    """the divergence of a second sweep, if one was made: vocab_fdiv"""

    def require(self, name: str) -> Tensor:
        """The statistic `name`, [N]; ValueError if there is none or it was not computed."""
        if name not in self._fields:
            raise ValueError(f"there is no statistic {name!r}, only {', '.join(self._fields)}")
        value = cast("Tensor | None", getattr(self, name))
        if value is None and name == "fdivergence":
            raise ValueError("the divergence of a second sweep is needed: vocab_fdiv computes it")
        if value is None:
            raise ValueError(
                f"statistic {name!r} is needed but was not computed: "
                f"ask vocab_stats for Feature.{FEATURE_OF[name].name}"
            )
        return value


FEATURE_OF: Mapping[str, Feature] = MappingProxyType(
    {
        "student_entropy": Feature.STUDENT_ENTROPY,
        "student_label_logprob": Feature.LABEL,
        "teacher_lse": Feature.TEACHER,
        "teacher_argmax": Feature.TEACHER,
        "teacher_max_logprob": Feature.TEACHER,
        "student_logprob_at_teacher_argmax": Feature.TEACHER,
        "teacher_entropy": Feature.TEACHER | Feature.TEACHER_ENTROPY,
        "teacher_label_logprob": Feature.TEACHER | Feature.LABEL,
        "forward_kl": Feature.TEACHER | Feature.FORWARD_KL,
        "reverse_kl": Feature.TEACHER | Feature.REVERSE_KL,
        "teacher_power_sum": Feature.TEACHER | Feature.POWER_SUM,
        "soft_forward_kl": Feature.TEACHER | Feature.SOFTENED,
        "soft_reverse_kl": Feature.TEACHER | Feature.SOFTENED,
    }
)
"""The features that a statistic needs; those not listed are always there."""
