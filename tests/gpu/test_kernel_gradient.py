"""vocab_gradient on the executor against dense formulas in float64.

The upstream gradients choose what a row computes, so every row of a launch is a pattern of logits
with a pattern of upstream gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from vocab_kernels.build import SWEEP_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_gradient, assert_vectors
from vocab_kernels.contract import ALL_FEATURES, FP32, LOGIT_TYPES, Feature, LogitType, stat_rows
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import stats_gradient
from vocab_kernels.launchers import Launchers, Outcome
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import (
    FINITE,
    Pair,
    Pattern,
    even,
    maxima_at,
    ordinary,
    student_holes,
    student_nan,
    teacher_holes,
)
from vocab_kernels.shapes import elements, ends, shapes
from vocab_kernels.upstream import UPSTREAM, packed, upstream_of

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
KINDS = [kind for _, kind in ROWS]
# those with a loop of their own over the row's elements
LOOPS = ["both labels", "hybrid", "general", "softened"]
# at both ends; the last two rows: a token without label, and a label that no shard has
LABELS = (0.0, 1.0, 0.0, 1.0, *[0.5] * (len(ROWS) - 6), IGNORED, 1 << 20)
# (shape, in place, padding columns)
CASES = [
    ("one column", True, 0),
    ("part of a vector", False, 0),
    ("vectors and a tail", True, 2),  # padding within the tail's vector
    ("vectors and a tail", False, 2500),  # ... where the compiler made four rounds of zeros of one
    ("whole rounds", True, 0),
    ("one more", False, 0),
    ("rounds and a tail", False, 150),  # padding longer than a block's zeros
    ("rounds and more than half a round", True, 4),
    ("misaligned", True, 1),
    ("misaligned", False, 40),
    ("teacher misaligned", True, 0),
    ("student misaligned", False, 0),  # the gradient is misaligned too
    ("three warps, three parts", True, 3),
    ("three warps, three parts", False, 700),  # a part with nothing but padding
]

sweeps = pytest.mark.parametrize("launchers", SWEEP_ARCHITECTURES, indirect=True)
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)


def upstream(
    p: Problem, features: Feature = ALL_FEATURES, kinds: Sequence[str] = KINDS
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    by_name = upstream_of(kinds, features)
    return by_name, packed(by_name, p.rows, features)


def check(
    launchers: Launchers, p: Problem, layout: Layout, kinds: Sequence[str] = KINDS,
    **options: object,
) -> Outcome:  # fmt: skip
    by_name, weights = upstream(p, kinds=kinds)
    stats = stacked(p.model.finished(), ALL_FEATURES)
    outcome = launchers.vocab_gradient(p, stats, weights, layout, **options)  # type: ignore[arg-type]
    assert_clean(outcome)
    assert_gradient(stats_gradient(p.model, by_name), outcome, p.dtype, p.patterns)
    return outcome


@sweeps
@pytest.mark.parametrize(("name", "in_place", "padding"), CASES)
@dtypes
def test_values(
    launchers: Launchers, dtype: LogitType, name: str, in_place: bool, padding: int
) -> None:
    """In step; noise in every case that is in place."""
    shape = shapes(dtype)[name]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    check(launchers, p, shape.layout, in_place=in_place, padding=padding, noise=float(in_place))


@sweeps
@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType) -> None:
    """In place, where a thread that reads what another one has written would show."""
    p = Problem(dtype, 130 * dtype.vector + 3, PATTERNS, LABELS)
    check(launchers, p, Layout(64, 2), in_place=True, padding=2, seed=1, noise=1.0)


@sweeps
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


@dtypes
def test_aligned_rows_are_read_by_vectors(launchers: Launchers, dtype: LogitType) -> None:
    for loop in LOOPS:
        p = Problem(dtype, 16 * 64 * dtype.vector, [even])
        outcome = check(launchers, p, Layout(32), [loop], profile=True)
        assert_vectors(outcome, 2 * p.columns * dtype.size)


def test_shards(launchers: Launchers) -> None:
    """The label's and the argmax's term are in one shard, every shard has its part of the rest."""
    p = Problem(FP32, 600, PATTERNS, LABELS)
    by_name, weights = upstream(p)
    stats, cuts = stacked(p.model.finished(), ALL_FEATURES), [0, 200, 201]
    whole = stats_gradient(p.model, by_name)
    for shard, first in zip(p.shards(cuts), [0, *cuts], strict=True):
        outcome = launchers.vocab_gradient(shard, stats, weights, Layout(32, 2), padding=4)
        assert_clean(outcome)
        part = whole[:, first : first + shard.columns]
        assert_gradient(part, outcome, FP32, PATTERNS)


@sweeps
@pytest.mark.parametrize(
    "features",
    [Feature.LABEL | Feature.STUDENT_ENTROPY, Feature.TEACHER, ALL_FEATURES & ~Feature.POWER],
    ids=int,
)
@dtypes
def test_features(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    """The rows of what it reads depend on them. Without a teacher only the student's terms; argmax
    columns of a teacher that is not there are none."""
    p = Problem(dtype, 130 * dtype.vector + 3, PATTERNS, LABELS)
    by_name, weights = upstream(p, features)
    stats = stacked(p.model.finished(), features)
    outcome = launchers.vocab_gradient(p, stats, weights, Layout(32, 2), features, noise=1.0)
    assert_clean(outcome)
    assert_gradient(stats_gradient(p.model, by_name), outcome, dtype, PATTERNS)


@dtypes
def test_sm_80(launchers: Launchers, dtype: LogitType) -> None:
    shape = shapes(dtype)["three warps, three parts"]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    with launchers.on("sm_80", f"vocab_gradient_kernelI{dtype.mangled}E"):
        check(launchers, p, shape.layout, in_place=True, padding=3)


@sweeps
def test_nan_shows(launchers: Launchers) -> None:
    """Logits that are not numbers have no gradient, whatever the row's kind."""
    kinds = ("cross entropy", "log-sum-exp", "entropy", "forward", "reverse", "softened")
    p = Problem(FP32, 100, [student_nan] * len(kinds))
    stats = stacked(replace(p, patterns=[ordinary] * p.rows).model.finished(), ALL_FEATURES)
    for name in ("student_sum", "student_entropy", "forward_kl", "reverse_kl", "soft_student_sum",
                 "soft_forward_kl", "soft_reverse_kl"):  # fmt: skip
        stats[stat_rows(ALL_FEATURES).index(name)] = np.nan
    weights = packed(upstream_of(kinds), p.rows, ALL_FEATURES)
    outcome = launchers.vocab_gradient(p, stats, weights)
    assert_clean(outcome)
    for row, kind in enumerate(kinds):
        assert np.isnan(outcome.result[row]).all(), kind


@dtypes
def test_every_end(launchers: Launchers, dtype: LogitType) -> None:
    for shape in ends(dtype):
        p = Problem(dtype, shape.columns, [even] * len(LOOPS), [1.0] * len(LOOPS))
        check(launchers, p, shape.layout, LOOPS)


@dtypes
def test_every_element(launchers: Launchers, dtype: LogitType) -> None:
    """Has a label, and the teacher's maximum, which stand apart."""
    columns = elements(dtype)
    pairs = [pair for pair in zip(columns, columns[::-1], strict=True) for _ in LOOPS]
    patterns = [maxima_at(0, argmax) for _, argmax in pairs]
    p = Problem(dtype, 64 * dtype.vector, patterns, [label for label, _ in pairs])
    for layout in (Layout(), Layout(slack=(1, 1, 1), start=(1, 1, 1))):
        check(launchers, p, layout, LOOPS * len(columns))
