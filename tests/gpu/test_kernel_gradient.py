"""vocab_gradient on the executor against dense formulas in float64.

The upstream gradients choose what a row computes, so every row of a launch is a pattern of logits
with a pattern of upstream gradients.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vocab_kernels.build import OTHER_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_gradient
from vocab_kernels.contract import ALL_FEATURES, FP32, LOGIT_TYPES, Feature, LogitType, stat_rows
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import DIFFERENTIABLE, stats_gradient
from vocab_kernels.launchers import Launchers, Outcome
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import (
    FINITE,
    Pair,
    Pattern,
    ordinary,
    student_holes,
    student_nan,
    teacher_holes,
)
from vocab_kernels.shapes import shapes

# by GradientKind of csrc/core/gradient.h, and the statistics that lead to it
UPSTREAM: dict[str, dict[str, float]] = {
    "zero": {},
    "cross entropy": {"student_at_label": -1.0},
    "log-sum-exp": {"student_sum": 0.3},
    "argmax": {"student_at_teacher_argmax": -0.7},
    "entropy": {"student_entropy": 0.7},
    "forward": {"forward_kl": 0.6},
    "hybrid": {"forward_kl": 0.7, "student_at_label": -0.4, "student_at_teacher_argmax": 0.3},
    "reverse": {"reverse_kl": 0.8},
    "general": {"reverse_kl": 0.6, "forward_kl": 0.5, "student_entropy": -0.3, "student_sum": 0.1,
                "student_at_label": -0.2, "student_at_teacher_argmax": 0.15},
    "softened": {"soft_forward_kl": 0.5, "soft_reverse_kl": 0.4, "reverse_kl": 0.3,
                 "student_at_label": -0.2, "student_at_teacher_argmax": 0.15},
    "soft forward": {"soft_forward_kl": 0.5, "student_at_label": -0.5},
    "soft reverse": {"soft_reverse_kl": 0.5},
}  # fmt: skip
ROWS: tuple[tuple[Pattern, str], ...] = (
    *((ordinary, kind) for kind in UPSTREAM),
    *((pattern, "general") for pattern in FINITE),
    *((pattern, "softened") for pattern in FINITE),
    # an infinite divergence without weight is left out
    *((student_holes, kind) for kind in ("cross entropy", "entropy", "forward")),
    *((teacher_holes, kind) for kind in ("cross entropy", "hybrid", "soft forward")),
    (ordinary, "general"),
    (ordinary, "general"),
)
PATTERNS = [pattern for pattern, _ in ROWS]
# at both ends; the last two rows: a token without label, and a label that no shard has
LABELS = (0.0, 1.0, 0.0, 1.0, *[0.5] * (len(ROWS) - 6), IGNORED, 1 << 20)
# (shape, in place, padding columns)
CASES = [
    ("one column", True, 0),
    ("part of a vector", False, 0),
    ("vectors and a tail", True, 2),  # padding within the tail's vector
    ("whole rounds", True, 0),
    ("one more", False, 0),
    ("rounds and a tail", False, 150),  # padding longer than a block's zeros
    ("misaligned", True, 1),
    ("misaligned", False, 40),
    ("teacher misaligned", True, 0),
    ("student misaligned", False, 0),  # the gradient is misaligned too
    ("three warps, three parts", True, 3),
    ("three warps, three parts", False, 700),  # a part with nothing but padding
]

dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)


def upstream(
    p: Problem, features: Feature = ALL_FEATURES
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    by_name = {
        name: np.array([UPSTREAM[kind].get(name, 0.0) for _, kind in ROWS], np.float32)
        for name in DIFFERENTIABLE
    }
    zeros = np.zeros(p.rows, np.float32)
    return by_name, np.stack([by_name.get(name, zeros) for name in stat_rows(features)])


def check(launchers: Launchers, p: Problem, layout: Layout, **options: object) -> Outcome:
    by_name, packed = upstream(p)
    stats = stacked(p.model.finished(), ALL_FEATURES)
    outcome = launchers.vocab_gradient(p, stats, packed, layout, **options)  # type: ignore[arg-type]
    assert_clean(outcome)
    assert_gradient(stats_gradient(p.model, by_name), outcome, p.dtype, p.patterns)
    return outcome


@pytest.mark.parametrize(("name", "in_place", "padding"), CASES)
@dtypes
def test_values(
    launchers: Launchers, dtype: LogitType, name: str, in_place: bool, padding: int
) -> None:
    """In step; noise in every case that is in place."""
    shape = shapes(dtype)[name]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    check(launchers, p, shape.layout, in_place=in_place, padding=padding, noise=float(in_place))


@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType) -> None:
    """In place, where a thread that reads what another one has written would show."""
    p = Problem(dtype, 130 * dtype.vector + 3, PATTERNS, LABELS)
    check(launchers, p, Layout(64, 2), in_place=True, padding=2, seed=1, noise=1.0)


@dtypes
def test_rows_without_weight_are_zero(launchers: Launchers, dtype: LogitType) -> None:
    """... exactly, also where the logits are not numbers: they are not looked at."""

    def broken(rng: np.random.Generator, size: int) -> Pair:
        return np.full(size, np.nan), np.full(size, np.inf)

    p = Problem(dtype, 70, [broken, broken], [0.5, IGNORED])
    stats, zeros = np.full((18, 2), np.nan, np.float32), np.zeros((18, 2), np.float32)
    zeros[11, 1] = 1.0  # of a token that is skipped
    outcome = launchers.vocab_gradient(p, stats, zeros, padding=5)
    assert_clean(outcome)
    assert not dtype.decode(outcome.result).any()


def test_shards(launchers: Launchers) -> None:
    """The label's and the argmax's term are in one shard, every shard has its part of the rest."""
    p = Problem(FP32, 600, PATTERNS, LABELS)
    by_name, packed = upstream(p)
    stats, cuts = stacked(p.model.finished(), ALL_FEATURES), [0, 200, 201]
    whole = stats_gradient(p.model, by_name)
    for shard, first in zip(p.shards(cuts), [0, *cuts], strict=True):
        outcome = launchers.vocab_gradient(shard, stats, packed, Layout(32, 2), padding=4)
        assert_clean(outcome)
        part = whole[:, first : first + shard.columns]
        assert_gradient(part, outcome, FP32, PATTERNS)


@dtypes
def test_without_teacher(launchers: Launchers, dtype: LogitType) -> None:
    """Only the student's terms; argmax columns of a teacher that is not there are none."""
    features = Feature.LABEL | Feature.STUDENT_ENTROPY
    p = Problem(dtype, 130 * dtype.vector + 3, PATTERNS, LABELS)
    by_name, packed = upstream(p, features)
    by_name = {name: up for name, up in by_name.items() if name in stat_rows(features)}
    stats = stacked(p.model.finished(), features)
    outcome = launchers.vocab_gradient(p, stats, packed, Layout(32, 2), features, noise=1.0)
    assert_clean(outcome)
    assert_gradient(stats_gradient(p.model, by_name), outcome, dtype, PATTERNS)


@pytest.mark.parametrize("arch", OTHER_ARCHITECTURES)
@dtypes
def test_other_architectures(launchers: Launchers, dtype: LogitType, arch: str) -> None:
    shape = shapes(dtype)["three warps, three parts"]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    with launchers.on(arch, f"vocab_gradient_kernelI{dtype.mangled}E"):
        check(launchers, p, shape.layout, in_place=True, padding=3)


def test_nan_shows(launchers: Launchers) -> None:
    """Logits that are not numbers have no gradient, whatever the row's kind."""
    kinds = ("cross entropy", "log-sum-exp", "entropy", "forward", "reverse", "softened")
    p = Problem(FP32, 100, [student_nan] * len(kinds))
    packed = np.zeros((18, p.rows), np.float32)
    for row, kind in enumerate(kinds):
        for name, weight in UPSTREAM[kind].items():
            packed[stat_rows(ALL_FEATURES).index(name), row] = weight
    stats = stacked(replace(p, patterns=[ordinary] * p.rows).model.finished(), ALL_FEATURES)
    for name in ("student_sum", "student_entropy", "forward_kl", "reverse_kl", "soft_student_sum",
                 "soft_forward_kl", "soft_reverse_kl"):  # fmt: skip
        stats[stat_rows(ALL_FEATURES).index(name)] = np.nan
    outcome = launchers.vocab_gradient(p, stats, packed)
    assert_clean(outcome)
    for row, kind in enumerate(kinds):
        assert np.isnan(outcome.result[row]).all(), kind
