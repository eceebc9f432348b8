"""vocab_fdiv and its gradient on the executor against dense formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from vocab_kernels.build import OTHER_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_gradient, assert_within
from vocab_kernels.contract import BF16, FP32, LOGIT_TYPES, Divergence, Feature, LogitType
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import FDivergence
from vocab_kernels.headers import fdiv_kernels
from vocab_kernels.launchers import Launchers
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import FINITE, INFINITE, ordinary, student_nan, teacher_nan
from vocab_kernels.shapes import shapes

# all divergences here are finite where one model rules a token out
PATTERNS = (*FINITE, *INFINITE, ordinary, ordinary)
LABELS = (*[0.5] * (len(PATTERNS) - 2), IGNORED, 0.5)
UPSTREAM = np.linspace(-1, 1, len(PATTERNS)).astype(np.float32)
UPSTREAM[-1] = 0.0
# (divergence, lambda): symmetric, and far from it
SKEWS = {Divergence.JENSEN_SHANNON: 0.5, Divergence.SKEW_FORWARD: 0.1,
         Divergence.SKEW_REVERSE: 0.1, Divergence.TOTAL_VARIATION: 0.5}  # fmt: skip
# (shape, in place, padding)
CASES = [
    ("no column", False, 2),
    ("one column", True, 0),
    ("part of a vector", False, 3),
    ("whole rounds", True, 0),
    ("misaligned", True, 5),
    ("three warps, three parts", False, 3),
]
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)
kinds = pytest.mark.parametrize("kind", Divergence, ids=lambda k: k.name)


def check(
    launchers: Launchers, p: Problem, kind: Divergence, layout: Layout, *, in_place: bool = False,
    padding: int = 0, skew: float | None = None, features: Feature = Feature.TEACHER,
    **options: float,
) -> None:  # fmt: skip
    skew = float(np.float32(SKEWS[kind] if skew is None else skew))
    if p.columns:
        exact, stats = FDivergence(p.model, kind, skew), stacked(p.model.finished(), features)
    else:
        stats = np.zeros((len(stacked(p.model.partial(), features)), p.rows), np.float32)
    found = launchers.vocab_fdiv(p, stats, kind, skew, layout, features, **options)
    assert_clean(found)
    if not p.columns:
        assert not found.result.any()
        return
    for bounded, got, what in zip(
        (exact.divergence, exact.slope), found.result, ("divergence", "slope"), strict=True
    ):
        assert_within(bounded, got, what, p.patterns)
    sums = np.stack([exact.divergence.value, exact.slope.value]).astype(np.float32)
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, sums, UPSTREAM[: p.rows], kind, skew, layout, features, in_place=in_place,
        padding=padding, **options,
    )  # fmt: skip
    assert_clean(outcome)
    assert_gradient(exact.gradient(UPSTREAM[: p.rows]), outcome, p.dtype, p.patterns)


@pytest.mark.parametrize(("name", "in_place", "padding"), CASES)
@kinds
@dtypes
def test_values(
    launchers: Launchers, dtype: LogitType, kind: Divergence, name: str, in_place: bool,
    padding: int,
) -> None:  # fmt: skip
    shape = shapes(dtype)[name]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    check(launchers, p, kind, shape.layout, in_place=in_place, padding=padding,
          noise=float(in_place))  # fmt: skip


@kinds
@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType, kind: Divergence) -> None:
    p = Problem(dtype, 130 * dtype.vector + 3, [ordinary, *INFINITE])
    check(launchers, p, kind, Layout(64, 2), in_place=True, seed=1, noise=1.0)


@pytest.mark.parametrize("skew", [0.001, 0.999])
@kinds
def test_mixtures_near_one_model(launchers: Launchers, kind: Divergence, skew: float) -> None:
    """The smaller part of the mixture decides where the larger one has no probability."""
    check(launchers, Problem(FP32, 300, PATTERNS, LABELS), kind, Layout(32, 2), skew=skew)


def test_more_statistics(launchers: Launchers) -> None:
    """The rows of what it reads depend on the features of the first sweep."""
    features = Feature.TEACHER | Feature.LABEL | Feature.STUDENT_ENTROPY | Feature.FORWARD
    p = Problem(BF16, 300, PATTERNS, LABELS)
    check(launchers, p, Divergence.JENSEN_SHANNON, Layout(32, 2), features=features)


@pytest.mark.parametrize("arch", OTHER_ARCHITECTURES)
@kinds
@dtypes
def test_other_architectures(
    launchers: Launchers, dtype: LogitType, kind: Divergence, arch: str
) -> None:
    shape = shapes(dtype)["three warps, three parts"]
    p = Problem(dtype, shape.columns, PATTERNS, LABELS)
    with launchers.on(arch, *fdiv_kernels(dtype, kind), "add_parts_kernel"):
        check(launchers, p, kind, shape.layout, in_place=True, padding=3)


@kinds
def test_nan_shows(launchers: Launchers, kind: Divergence) -> None:
    """A model that has diverged has no divergence, and the student's no gradient."""
    p = Problem(FP32, 100, [student_nan, teacher_nan])
    stats = np.zeros((7, 2), np.float32)
    stats[1, 0] = stats[4, 1] = np.nan  # the sums, as vocab_stats leaves them
    found = launchers.vocab_fdiv(p, stats, kind, 0.5)
    assert_clean(found)
    assert np.isnan(found.result[0]).all()
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, found.result, np.ones(2, np.float32), kind, 0.5
    )
    assert_clean(outcome)
    assert np.isnan(outcome.result[0]).all()
