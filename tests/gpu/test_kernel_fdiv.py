"""vocab_fdiv, and the gradient of divergence and statistics together, on the executor against dense
formulas in float64.

The upstream gradients of the statistics choose which of two launches writes a row, so every row is
a pattern of logits with a pattern of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from vocab_kernels.build import SWEEP_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_gradient, assert_vectors, assert_within
from vocab_kernels.contract import (
    ALL_FEATURES,
    BF16,
    EXPONENTS,
    FORMS,
    FP16,
    FP32,
    LOGIT_TYPES,
    Divergence,
    Feature,
    Form,
    LogitType,
    stat_rows,
)
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import FDivergence
from vocab_kernels.headers import fdiv_kernels
from vocab_kernels.launchers import STREAM, Launchers, Outcome
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import (
    FINITE,
    INFINITE,
    Pair,
    Pattern,
    common_holes,
    even,
    holes_without_weight,
    large,
    maxima_at,
    offset,
    ordinary,
    student_holes,
    student_nan,
    teacher_holes,
    teacher_nan,
    with_hole,
)
from vocab_kernels.shapes import elements, ends, shapes
from vocab_kernels.upstream import UPSTREAM, packed, upstream_of

ROWS: tuple[tuple[Pattern, str], ...] = (
    *((ordinary, kind) for kind in UPSTREAM),
    # divergences are finite where one model rules a token out, unlike KLs
    *((pattern, "both labels") for pattern in (*FINITE, *INFINITE)),
    *zip(FINITE, cycle(("general", "softened")), strict=False),
    *((student_holes, kind) for kind in ("zero", "entropy", "forward")),
    *((teacher_holes, kind) for kind in ("zero", "hybrid", "soft forward")),
    (ordinary, "cross entropy"),
    (ordinary, "general"),
    (ordinary, "both labels"),
    (ordinary, "softened"),
    (ordinary, "zero"),
)
PATTERNS = [pattern for pattern, _ in ROWS]
# the last rows: two tokens without label, and three whose divergence has no weight
LABELS = (0.0, 1.0, *[0.5] * (len(ROWS) - 7), IGNORED, IGNORED, 0.5, 0.5, 0.5)
OF_DIVERGENCE = np.linspace(-1, 1, len(ROWS)).astype(np.float32)
OF_DIVERGENCE[-3:] = 0.0
# of which both models have the same tokens, with ratios that powers do not make infinite: what the
# limits of alpha-beta need
MODERATE = [k for k, (pattern, _) in enumerate(ROWS)
            if pattern not in (*INFINITE, holes_without_weight, large)]  # fmt: skip
# (divergence, lambda): symmetric, and far from it
SKEWS = {Divergence.JENSEN_SHANNON: 0.5, Divergence.SKEW_FORWARD: 0.1,
         Divergence.SKEW_REVERSE: 0.1, Divergence.TOTAL_VARIATION: 0.5,
         Divergence.ALPHA_BETA: 0.5}  # fmt: skip
# (shape, in place, padding)
CASES = [
    ("no column", False, 2),
    ("one column", True, 0),
    ("part of a vector", False, 3),
    ("whole rounds", True, 0),
    ("vectors and a tail", False, 2500),  # where the compiler made several rounds of zeros of one
    ("rounds and more than half a round", False, 4),
    ("misaligned", True, 5),
    ("three warps, three parts", False, 3),
]
sweeps = pytest.mark.parametrize("launchers", SWEEP_ARCHITECTURES, indirect=True)
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)
kinds = pytest.mark.parametrize("kind", Divergence, ids=lambda k: k.name)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)


def check(
    launchers: Launchers, p: Problem, kind: Divergence, layout: Layout, *, in_place: bool = False,
    padding: int = 0, skew: float | None = None, features: Feature = ALL_FEATURES,
    rows: Sequence[tuple[Pattern, str]] = ROWS, of_divergence: np.ndarray = OF_DIVERGENCE,
    exponents: tuple[float, float] = EXPONENTS, **options: float,
) -> list[Outcome]:  # fmt: skip
    """rows: the problem's."""
    skew = float(np.float32(SKEWS[kind] if skew is None else skew))
    if p.columns:
        exact, stats = (
            FDivergence(p.model, kind, skew, exponents),
            stacked(p.model.finished(), features),
        )
        sums = np.stack([exact.divergence.value, exact.slope.value]).astype(np.float32)
    else:
        stats = np.zeros((len(stat_rows(features)), p.rows), np.float32)
        sums = stats[:2]
    found = launchers.vocab_fdiv(
        p, stats, kind, skew, layout, features, exponents=exponents, **options
    )
    assert_clean(found)
    upstream, of_divergence = upstream_of([k for _, k in rows], features), of_divergence[: p.rows]
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, packed(upstream, p.rows, features), sums, of_divergence, kind, skew, layout,
        features, in_place=in_place, padding=padding, exponents=exponents, **options,
    )  # fmt: skip
    assert_clean(outcome)
    if not p.columns:
        assert not found.result.any()
        assert not outcome.result.any()
        return [found, outcome]
    for bounded, got, what in zip(
        (exact.divergence, exact.slope), found.result, ("divergence", "slope"), strict=True
    ):
        assert_within(bounded, got, what, p.patterns)
    expected = exact.combined_gradient(upstream, of_divergence)
    assert_gradient(expected, outcome, p.dtype, p.patterns)
    return [found, outcome]


def check_form(
    launchers: Launchers, dtype: LogitType, form: Form, name: str, **options: Any
) -> None:
    numbers = range(len(ROWS)) if form.exponents == EXPONENTS else MODERATE
    rows, labels = [ROWS[k] for k in numbers], [LABELS[k] for k in numbers]
    shape = shapes(dtype)[name]
    p = Problem(dtype, shape.columns, [pattern for pattern, _ in rows], labels)
    check(launchers, p, form.kind, shape.layout, rows=rows, of_divergence=OF_DIVERGENCE[numbers],
          exponents=form.exponents, **options)  # fmt: skip


@sweeps
@pytest.mark.parametrize(("name", "in_place", "padding"), CASES)
@forms
@dtypes
def test_values(
    launchers: Launchers, dtype: LogitType, form: Form, name: str, in_place: bool, padding: int
) -> None:
    check_form(launchers, dtype, form, name, in_place=in_place, padding=padding,
               noise=float(in_place))  # fmt: skip


@kinds
@dtypes
def test_shards(launchers: Launchers, dtype: LogitType, kind: Divergence) -> None:
    """The label's and the argmax's term are in one shard, every shard has its part of the rest."""
    p, features = Problem(dtype, 600, PATTERNS, LABELS), ALL_FEATURES
    exact, stats = FDivergence(p.model, kind, SKEWS[kind]), stacked(p.model.finished(), features)
    sums = np.stack([exact.divergence.value, exact.slope.value]).astype(np.float32)
    upstream, cuts = upstream_of([k for _, k in ROWS], features), [0, 200, 201]
    whole = exact.combined_gradient(upstream, OF_DIVERGENCE)
    for shard, first in zip(p.shards(cuts), [0, *cuts], strict=True):
        outcome = launchers.vocab_fdiv_gradient(
            shard, stats, packed(upstream, p.rows, features), sums, OF_DIVERGENCE, kind,
            SKEWS[kind], Layout(32, 2), features, padding=4,
        )  # fmt: skip
        assert_clean(outcome)
        part = whole[:, first : first + shard.columns]
        assert_gradient(part, outcome, dtype, p.patterns)


@sweeps
@kinds
@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType, kind: Divergence) -> None:
    rows = [(ordinary, "softened"), (ordinary, "general"), (ordinary, "both labels"),
            *((pattern, "zero") for pattern in INFINITE)]  # fmt: skip
    p = Problem(dtype, 130 * dtype.vector + 3, [pattern for pattern, _ in rows])
    check(launchers, p, kind, Layout(64, 2), in_place=True, rows=rows, seed=1, noise=1.0)


# negative ones of every form among them
OTHER_EXPONENTS = ((1.0, 1.0), (0.9, -0.3), (-0.4, 1.2), (-1.2, 0.5), (-0.3, 0.3), (-0.5, 0.0),
                   (0.0, -0.5))  # fmt: skip


@pytest.mark.parametrize("exponents", OTHER_EXPONENTS)
@dtypes
def test_exponents(launchers: Launchers, dtype: LogitType, exponents: tuple[float, float]) -> None:
    """Of rows in which both models have the same tokens. The powers of the absent ones are huge."""
    hole = with_hole(even, 5)
    rows = [(even, "both labels"), (hole, "general"), (hole, "softened"), (hole, "zero")]
    if dtype != FP16:  # which these would overflow
        rows += [(ordinary, "general"), (offset, "zero"), (common_holes, "zero")]
    p = Problem(dtype, 130 * dtype.vector + 3, [pattern for pattern, _ in rows])
    check(launchers, p, Divergence.ALPHA_BETA, Layout(64, 2), in_place=True, padding=3, rows=rows,
          exponents=exponents, noise=1.0)  # fmt: skip


def test_many_parts(launchers: Launchers) -> None:
    """Their loop goes on, and more sums than a block of 128 threads has."""
    p = Problem(FP32, 9 * 256 + 7, [even] * 70)
    exact, stats = FDivergence(p.model, Divergence.TOTAL_VARIATION, 0.5), p.model.finished()
    outcome = launchers.vocab_fdiv(
        p, stacked(stats, Feature.TEACHER), Divergence.TOTAL_VARIATION, 0.5, Layout(32, 10)
    )
    assert_clean(outcome)
    assert_within(exact.divergence, outcome.result[0], "divergence", p.patterns)
    assert_within(exact.slope, outcome.result[1], "slope", p.patterns)


@sweeps
@pytest.mark.parametrize("skew", [0.001, 0.999])
@kinds
def test_mixtures_near_one_model(launchers: Launchers, kind: Divergence, skew: float) -> None:
    """The smaller part of the mixture decides where the larger one has no probability."""
    check(launchers, Problem(FP32, 300, PATTERNS, LABELS), kind, Layout(32, 2), skew=skew)


@pytest.mark.parametrize(
    ("features", "launches"),
    [
        (Feature.TEACHER, 1),
        (Feature.TEACHER | Feature.LABEL | Feature.TEACHER_ENTROPY | Feature.POWER, 1),
        *((Feature.TEACHER | general, 2) for general in (
            Feature.FORWARD, Feature.REVERSE, Feature.STUDENT_ENTROPY, Feature.SOFTENED)),
    ],
)  # fmt: skip
def test_features(launchers: Launchers, features: Feature, launches: int) -> None:
    """The rows of what it reads depend on the features of the first sweep. Of some the gradient is
    a multiple of q: there is no second launch."""
    p = Problem(BF16, 300, PATTERNS, LABELS)
    _, outcome = check(launchers, p, Divergence.JENSEN_SHANNON, Layout(32, 2), features=features)
    assert [launch.stream for launch in outcome.launches] == [STREAM] * launches


@pytest.mark.parametrize("in_place", [True, False])
@dtypes
def test_a_row_is_written_once(launchers: Launchers, dtype: LogitType, in_place: bool) -> None:
    """... by one of the two launches; the other one leaves it alone. The columns of label and
    argmax are written again, but where the row is 0."""
    p = Problem(dtype, 300, PATTERNS, LABELS)
    _, outcome = check(launchers, p, Divergence.SKEW_REVERSE, Layout(32, 2), in_place=in_place,
                       padding=2, profile=True)  # fmt: skip
    stored = [x.report.profile.traffic["store global"].bytes for x in outcome.launches]
    general = ("entropy", "forward", "hybrid", "reverse", "general", "softened", "soft forward",
               "soft reverse")  # fmt: skip
    second = sum(kind in general and not skipped
                 for (_, kind), skipped in zip(ROWS, p.model.skipped, strict=True))  # fmt: skip
    zero = sum((kind == "zero" and weight == 0) or skipped for (_, kind), weight, skipped in zip(
        ROWS, OF_DIVERGENCE, p.model.skipped, strict=True))  # fmt: skip
    first = p.rows - second
    assert stored == [(first * 302 + 2 * (first - zero)) * dtype.size, second * 304 * dtype.size]


@forms
@dtypes
def test_rows_without_weight_are_zero(launchers: Launchers, dtype: LogitType, form: Form) -> None:
    """... exactly, also where the logits are not numbers: they are not looked at."""

    def broken(rng: np.random.Generator, size: int) -> Pair:
        return np.full(size, np.nan), np.full(size, np.inf)

    p = Problem(dtype, 70, [broken, broken], [0.5, IGNORED])
    stats, sums = np.full((18, 2), np.nan, np.float32), np.full((2, 2), np.nan, np.float32)
    of_divergence = np.array([0.0, 1.0], np.float32)
    upstream = packed(upstream_of(["zero", "general"]), 2, ALL_FEATURES)
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, upstream, sums, of_divergence, form.kind, 0.5, features=ALL_FEATURES, padding=5,
        exponents=form.exponents,
    )  # fmt: skip
    assert_clean(outcome)
    assert not dtype.decode(outcome.result).any()


@forms
@dtypes
def test_sm_80(launchers: Launchers, dtype: LogitType, form: Form) -> None:
    with launchers.on("sm_80", *fdiv_kernels(dtype, form), "add_parts_kernel"):
        check_form(launchers, dtype, form, "three warps, three parts", in_place=True, padding=3)


@sweeps
@forms
def test_nan_shows(launchers: Launchers, form: Form) -> None:
    """A model that has diverged has no divergence, and the student's no gradient."""
    p = Problem(FP32, 100, [student_nan, student_nan, teacher_nan, teacher_nan])
    names = stat_rows(ALL_FEATURES)
    stats, of_divergence = np.zeros((18, 4), np.float32), np.ones(4, np.float32)
    # the sums, as vocab_stats leaves them
    stats[names.index("student_sum"), :2] = stats[names.index("teacher_sum"), 2:] = np.nan
    found = launchers.vocab_fdiv(
        p, stats, form.kind, 0.5, features=ALL_FEATURES, exponents=form.exponents
    )
    assert_clean(found)
    assert np.isnan(found.result[0]).all()
    # a row of each of the two launches
    upstream = packed(upstream_of(["both labels", "general"] * 2), 4, ALL_FEATURES)
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, upstream, found.result, of_divergence, form.kind, 0.5, features=ALL_FEATURES,
        exponents=form.exponents,
    )  # fmt: skip
    assert_clean(outcome)
    assert np.isnan(outcome.result[:2]).all()


# those with a loop of their own over the row's elements
LOOPS = ["both labels", "general", "softened"]


@forms
@dtypes
def test_aligned_rows_are_read_by_vectors(
    launchers: Launchers, dtype: LogitType, form: Form
) -> None:
    for loop in LOOPS:
        p = Problem(dtype, 16 * 64 * dtype.vector, [even])
        for outcome in check(launchers, p, form.kind, Layout(32), rows=[(even, loop)],
                             exponents=form.exponents, profile=True):  # fmt: skip
            assert_vectors(outcome, 2 * p.columns * dtype.size)


@forms
@dtypes
def test_every_end(launchers: Launchers, dtype: LogitType, form: Form) -> None:
    rows = [(even, loop) for loop in LOOPS]
    for shape in ends(dtype):
        p = Problem(dtype, shape.columns, [even] * len(rows), [1.0] * len(rows))
        check(launchers, p, form.kind, shape.layout, rows=rows, exponents=form.exponents)


@forms
@dtypes
def test_every_element(launchers: Launchers, dtype: LogitType, form: Form) -> None:
    """Has a label, and the teacher's maximum, which stand apart."""
    columns = elements(dtype)
    pairs = [pair for pair in zip(columns, columns[::-1], strict=True) for _ in LOOPS]
    rows = [
        (maxima_at(0, argmax), loop)
        for (_, argmax), loop in zip(pairs, LOOPS * len(columns), strict=True)
    ]
    labels = [label for label, _ in pairs]
    p = Problem(dtype, 64 * dtype.vector, [pattern for pattern, _ in rows], labels)
    for layout in (Layout(), Layout(slack=(1, 1, 1), start=(1, 1, 1))):
        check(launchers, p, form.kind, layout, rows=rows, exponents=form.exponents)
