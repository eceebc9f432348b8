"""scale_rows on the executor: one product an element, rounded to the rows' type."""

from __future__ import annotations

import numpy as np
import pytest
from vocab_kernels.bounded import EPSILON, Bounded
from vocab_kernels.build import OTHER_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_within
from vocab_kernels.contract import FP32, LOGIT_TYPES, LogitType
from vocab_kernels.launchers import Launchers
from vocab_kernels.problem import Layout, Problem
from vocab_kernels.rows import even, large, ordinary, student_nan
from vocab_kernels.shapes import Shape, shapes

# 1 leaves what is there, and 0 is 0 whatever is there
SCALES = {1.0: student_nan, 0.0: student_nan, 0.5: ordinary, -3.0: even, 1 / 3: large}
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)


def cases() -> list[object]:
    """Blocks have 256 threads that take 4 vectors each, so that most shapes are less than one."""
    found = []
    for dtype in LOGIT_TYPES:
        more = 1024 * dtype.vector + 2 * dtype.vector + 1
        long = {
            "two blocks": Shape(more, Layout(slack=(-more % dtype.vector,) * 3)),
            "two blocks, misaligned": Shape(more, Layout(slack=(1, 1, 1), start=(1, 1, 1))),
        }
        for name, shape in {**shapes(dtype), **long}.items():
            found.append(pytest.param(dtype, shape, id=f"{dtype.name}-{name}"))
    return found


def check(launchers: Launchers, p: Problem, layout: Layout, **options: float) -> None:
    scale = np.array(list(SCALES), np.float32)
    outcome = launchers.scale_rows(p, scale, layout, **options)
    assert_clean(outcome)
    before, after = p.dtype.decode(p.student), p.dtype.decode(outcome.result)
    exact = np.where(scale[:, None] == 0, 0.0, before * scale.astype(np.float64)[:, None])
    error = EPSILON * np.abs(exact) + p.dtype.rounding(exact)
    assert_within(Bounded(exact, error), after, "row", p.patterns)
    np.testing.assert_array_equal(outcome.result[0], p.student[0])


@pytest.mark.parametrize(("dtype", "shape"), cases())
def test_values(launchers: Launchers, dtype: LogitType, shape: Shape) -> None:
    check(launchers, Problem(dtype, shape.columns, list(SCALES.values())), shape.layout)


@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType) -> None:
    check(launchers, Problem(dtype, 300, list(SCALES.values())), Layout(slack=(4, 4, 4)), seed=1)


@pytest.mark.parametrize("arch", OTHER_ARCHITECTURES)
@dtypes
def test_other_architectures(launchers: Launchers, dtype: LogitType, arch: str) -> None:
    with launchers.on(arch, f"scale_rows_kernelI{dtype.mangled}E"):
        check(launchers, Problem(dtype, 300, list(SCALES.values())), Layout(slack=(4, 4, 4)))


def test_nothing_to_do(launchers: Launchers) -> None:
    for tokens, columns in ((0, 100), (2, 0)):
        p = Problem(FP32, columns, [ordinary] * tokens)
        outcome = launchers.scale_rows(p, np.ones(tokens, np.float32))
        assert (outcome.code, outcome.launches) == (0, [])
