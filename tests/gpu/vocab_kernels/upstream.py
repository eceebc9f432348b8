"""Upstream gradients of the statistics: they choose what a row of a gradient computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .contract import ALL_FEATURES, Feature, stat_rows
from .gradients import DIFFERENTIABLE

# by GradientKind of csrc/core/gradient.h, and the statistics that lead to it
UPSTREAM: dict[str, dict[str, float]] = {
    "zero": {},
    "cross entropy": {"student_at_label": -1.0},
    "log-sum-exp": {"student_sum": 0.3},
    "argmax": {"student_at_teacher_argmax": -0.7},
    "both labels": {"student_at_label": -0.6, "student_at_teacher_argmax": -0.3},
    "entropy": {"student_entropy": 0.7},
    "forward": {"forward_kl": 0.6},
    "hybrid": {"forward_kl": 0.7, "student_at_label": -0.4, "student_at_teacher_argmax": 0.3},
    "reverse": {"reverse_kl": 0.8},
    "general": {"reverse_kl": 0.6, "forward_kl": 0.5, "student_entropy": -0.3, "student_sum": 0.1,
                "student_at_label": -0.2, "student_at_teacher_argmax": 0.15},
    "softened": {"soft_forward_kl": 0.5, "soft_reverse_kl": 0.4, "reverse_kl": 0.3,
                 "forward_kl": 0.2, "student_entropy": -0.1, "student_at_label": -0.2,
                 "student_at_teacher_argmax": 0.15},
    "soft forward": {"soft_forward_kl": 0.5, "student_at_label": -0.5},
    "soft reverse": {"soft_reverse_kl": 0.5},
}  # fmt: skip


def upstream_of(kinds: Sequence[str], features: Feature = ALL_FEATURES) -> dict[str, np.ndarray]:
    """d loss / d statistic, [N] float32: one row of each kind, without what the features lack."""
    return {
        name: np.array([UPSTREAM[kind].get(name, 0.0) for kind in kinds], np.float32)
        for name in stat_rows(features)
        if name in DIFFERENTIABLE
    }


def packed(upstream: dict[str, np.ndarray], rows: int, features: Feature) -> np.ndarray:
    """As a tensor of statistics, [rows of statistics, N] float32."""
    zeros = np.zeros(rows, np.float32)
    return np.stack([upstream.get(name, zeros) for name in stat_rows(features)])
