"""vocab_stats on the executor against dense formulas in float64.

Every row of a launch is another kind of row (vocab_kernels/rows.py); every launch another shape
(shapes.py). All shapes run the instances with every feature and with none but labels, for these
two bracket the code; the others run three.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vocab_kernels.build import SWEEP_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_stats, assert_vectors
from vocab_kernels.contract import (
    ALL_FEATURES,
    BF16,
    FP32,
    LOGIT_TYPES,
    Feature,
    LogitType,
)
from vocab_kernels.headers import STATS_INSTANCES, stats_kernel
from vocab_kernels.launchers import Launchers
from vocab_kernels.problem import IGNORED, INSIDE, Layout, Problem
from vocab_kernels.rows import (
    ABSENT,
    FINITE,
    INFINITE,
    common_holes,
    even,
    maxima_at,
    ordinary,
    student_nan,
    student_overflow,
    teacher_nan,
    ties,
    with_hole,
)
from vocab_kernels.shapes import TYPICAL, elements, ends, shapes

F = Feature
START, VOCABULARY = 1000, 1 << 20
PATTERNS = (*FINITE, *INFINITE, *ABSENT, *[ordinary] * 4)
# labels at both ends of the columns, within them, in other shards, and in none
LABELS = (0.0, 1.0, *[INSIDE] * (len(PATTERNS) - 6), IGNORED, START - 1, VOCABULARY, -1)


def problem(dtype: LogitType, columns: int) -> Problem:
    return Problem(dtype, columns, PATTERNS, LABELS, START, VOCABULARY)


def cases() -> list[object]:
    return [
        pytest.param(dtype, features, name, id=f"{dtype.name}-{int(features)}-{name}")
        for dtype in LOGIT_TYPES
        for features in STATS_INSTANCES
        for name in shapes(dtype)
        if features in (F.LABEL, ALL_FEATURES) or name in TYPICAL
    ]


sweeps = pytest.mark.parametrize("launchers", SWEEP_ARCHITECTURES, indirect=True)
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)
instances = pytest.mark.parametrize("features", STATS_INSTANCES, ids=int)


def check(
    launchers: Launchers, p: Problem, layout: Layout, features: Feature, **options: float
) -> None:
    outcome = launchers.vocab_stats(p, layout, features, **options)
    assert_clean(outcome)
    assert_stats(p.model.partial(), outcome, p.patterns, features)
    if features in STATS_INSTANCES:
        assert stats_kernel(p.dtype, features) in outcome.launches[0].kernel


@sweeps
@pytest.mark.parametrize(("dtype", "features", "name"), cases())
def test_values(launchers: Launchers, dtype: LogitType, features: Feature, name: str) -> None:
    """In step. In every other case the approximate instructions are off by what they may be."""
    shape, noise = shapes(dtype)[name], float(STATS_INSTANCES.index(features) % 2)
    check(launchers, problem(dtype, shape.columns), shape.layout, features, noise=noise)


@instances
@dtypes
@pytest.mark.parametrize("tail", [0, 3])
def test_logits_are_read_once(
    launchers: Launchers, dtype: LogitType, features: Feature, tail: int
) -> None:
    """Also where a row ends within a vector: the columns behind it are no reason to read it again.
    The maxima are looked for once more, in one block of a thread."""
    columns = 6 * 64 * dtype.vector + tail
    p = Problem(dtype, columns, [even])
    slack = -columns % dtype.vector
    layout = Layout(32, 1, (slack, slack, slack))
    outcome = launchers.vocab_stats(p, layout, features, profile=True)
    assert_clean(outcome)
    read = outcome.launches[0].report.profile.traffic["load global"].bytes
    once = columns * dtype.size * (2 if features & F.TEACHER else 1)
    assert once <= read < 1.5 * once
    assert_vectors(outcome, once)


@sweeps
@instances
@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    """Warps in random order, and noise. Four rows: the order is of the warps of a block."""
    p = problem(dtype, 3 * 64 * dtype.vector + 7)
    few = [PATTERNS.index(f) for f in (*FINITE[:1], INFINITE[0])] + [len(PATTERNS) - 4]
    p = replace(p, patterns=[PATTERNS[k] for k in few], labels=[LABELS[k] for k in few])
    check(launchers, p, Layout(64, 2), features, seed=1, noise=1.0)


@dtypes
def test_schedule_changes_no_bit(launchers: Launchers, dtype: LogitType) -> None:
    """Sums are formed in a fixed order."""
    p, layout = problem(dtype, 3 * 64 * dtype.vector + 7), Layout(96, 2)
    in_step, other = (launchers.vocab_stats(p, layout, seed=seed) for seed in (0, 2))
    np.testing.assert_array_equal(other.result, in_step.result)


@pytest.mark.parametrize(
    "features",
    [F(0), F.TEACHER, F.TEACHER | F.POWER, F.TEACHER | F.SOFTENED,
     F.TEACHER | F.REVERSE | F.TEACHER_ENTROPY],
    ids=int,
)  # fmt: skip
def test_features_within_an_instance(launchers: Launchers, features: Feature) -> None:
    """Only what was asked for is stored, in rows without gaps. No labels: every row counts."""
    p = replace(problem(FP32, 300), labels=None)
    check(launchers, p, Layout(32, 2), features)


@instances
@dtypes
def test_fewest_features(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    """Every instance with as little as it is taken for."""
    for feature in Feature:
        rest = features & ~feature
        if launchers.library.instance_of(int(rest)) == features and feature != F.TEACHER:
            p = problem(dtype, 100)
            p = p if rest & F.LABEL else replace(p, labels=None)
            check(launchers, p, Layout(), rest)


@sweeps
@pytest.mark.parametrize("temperature", [0.25, 8.0])
def test_temperature(launchers: Launchers, temperature: float) -> None:
    """Below 1, softened probabilities underflow before the others do; above, after them."""
    p = replace(problem(FP32, 300), inv_temperature=1 / temperature, power_exponent=1 / temperature)
    check(launchers, p, Layout(32, 2), ALL_FEATURES, noise=1.0)


@instances
@dtypes
def test_sm_80(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    """One shape: the source is the same, the compiler's choices are not."""
    shape = shapes(dtype)["three warps, three parts"]
    with launchers.on("sm_80", stats_kernel(dtype, features), "merge_kernel"):
        check(launchers, problem(dtype, shape.columns), shape.layout, features)


@sweeps
@instances
def test_nan_shows(launchers: Launchers, features: Feature) -> None:
    """All that a logit which is no number enters is NaN."""
    p = Problem(BF16, 1000, [student_nan, teacher_nan, student_overflow, ordinary])
    partial = launchers.vocab_stats(p, Layout(32, 2), features)
    merged = launchers.merge_stats(partial.result[None], p, features).stats(features)
    exact = {"student_max", "student_argmax", "teacher_max", "teacher_argmax"}
    for name in merged.keys() - exact:
        both = name.endswith(("forward_kl", "reverse_kl"))
        of_student = both or name.startswith(("student", "soft_student"))
        expected = [of_student, both or not of_student, of_student, False]
        assert np.isnan(merged[name]).tolist() == expected, name


def test_cheapest_instance_is_taken(launchers: Launchers) -> None:
    """With a teacher when there is one, and no feature that costs exponentials unasked."""
    for features in map(Feature, range(256)):
        if features & ~F.LABEL & ~F.STUDENT_ENTROPY and not features & F.TEACHER:
            continue
        taken = Feature(launchers.library.instance_of(int(features)))
        assert features & ~taken == 0
        assert (features ^ taken) & F.TEACHER == 0
        holding = [
            i for i in STATS_INSTANCES if features & ~i == 0 and not (i ^ features) & F.TEACHER
        ]
        assert taken == holding[0]


@pytest.mark.parametrize("features", [F.LABEL, ALL_FEATURES], ids=int)
@dtypes
def test_every_end(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    for shape in ends(dtype):
        patterns = [even, ties, common_holes, maxima_at(0, 0), with_hole(even, 0)]
        p = Problem(dtype, shape.columns, patterns, [1.0, 1.0])
        check(launchers, p, shape.layout, features)


@pytest.mark.parametrize("features", [F.LABEL, ALL_FEATURES], ids=int)
@dtypes
def test_every_element(launchers: Launchers, dtype: LogitType, features: Feature) -> None:
    """The maxima of the models stand apart, so that neither is found in the other's place."""
    columns = elements(dtype)
    patterns = [maxima_at(c, d) for c, d in zip(columns, columns[::-1], strict=True)]
    patterns += [with_hole(pattern, -1) for pattern in patterns]
    p = Problem(dtype, 64 * dtype.vector, patterns, columns * 2)
    for layout in (Layout(), Layout(slack=(1, 1, 1), start=(1, 1, 1))):
        check(launchers, p, layout, features)
