"""The shipped kernels against the package's CPU operators, which are tested against float64.

The sizes: rows shorter than a vector, than a warp's and than a block's share; not a multiple of any
of them; rows that begin where no vector may; rows in parts and in clusters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ptx
import pytest
from compiler import Compiler
from kernel_problem import ALL_FEATURES, FLAGS, IGNORE, POWER, SOURCES, TEMPERATURE, Problem

torch = pytest.importorskip("torch")
ops = pytest.importorskip("bgkd_megatron.ops")

RUNS = [{}, {"seed": 3, "noise": 1.0}]  # in step and exact; random schedule, noisy exponentials


@pytest.fixture(scope="module", params=["sm_90a", "sm_80"])
def modules(request: pytest.FixtureRequest, nvcc: Compiler) -> dict[str, ptx.Module]:
    names = ("vocab_stats_bf16", "gradient", "merge", "fused")
    return {name: nvcc.ptx(SOURCES / f"{name}.cu", request.param, FLAGS) for name in names}


def problem(vocab_size: int, kind: str = "", **layout: int) -> Problem:
    rng = np.random.default_rng(vocab_size)
    student, teacher = rng.normal(size=(2, 3, vocab_size)).astype(np.float32) * 3
    labels = rng.integers(0, vocab_size, 3)
    if kind == "offset":
        student, teacher = student + 1e4, teacher - 1e4
    if kind == "ties":
        student, teacher = np.round(student), np.round(teacher)
    if kind == "absent":  # from both, from the student, from the teacher
        student[:, ::7] = teacher[:, ::7] = -np.inf
        student[0, 1::7] = -np.inf
        teacher[1, 2::7] = -np.inf
        labels[:] = 3
    if kind == "masked":
        labels[1] = IGNORE
    if kind == "equal":
        teacher = student
    return Problem(student, teacher, labels, **layout)


def as_torch(x: np.ndarray) -> Any:
    return torch.from_numpy(x)


def cpu_partial(p: Problem) -> Any:
    z, t = (as_torch(a.copy()).bfloat16() for a in (p.student, p.teacher))
    shape = (p.vocab_size, 0, ALL_FEATURES, TEMPERATURE, POWER, IGNORE)
    return ops.vocab_stats(z, t, as_torch(p.labels), *shape)


def merged(p: Problem, partial: Any) -> Any:
    labels = as_torch(p.labels)
    return ops.merge_stats(partial, labels, ALL_FEATURES, TEMPERATURE, POWER, IGNORE)


def assert_close(actual: Any, expected: Any, bound: float = 4e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound, equal_nan=True)


CASES = [
    (5, "", {}, 32),
    (1000, "", {}, 64),
    (1001, "ties", {"slack": 0}, 64),
    (700, "", {"start": 2, "slack": 3}, 64),
    (9000, "", {}, 256),
    (1000, "offset", {}, 64),
    (1000, "absent", {}, 64),
    (1000, "masked", {}, 64),
    (1000, "equal", {}, 64),
]


@pytest.mark.parametrize(("size", "kind", "layout", "threads"), CASES)
@pytest.mark.parametrize("run", RUNS, ids=["exact", "noisy"])
def test_statistics(modules, size: int, kind: str, layout: dict, threads: int, run: dict) -> None:
    p = problem(size, kind, **layout)
    partial = as_torch(p.partial(modules["vocab_stats_bf16"], threads, **run))
    assert p.device.findings == []
    assert_close(merged(p, partial), merged(p, cpu_partial(p)[None]))


@pytest.mark.parametrize("parts", [2, 3])
def test_statistics_of_a_row_in_parts(modules, parts: int) -> None:
    p = problem(5000, "ties")
    partial = as_torch(p.partial(modules["vocab_stats_bf16"], 64, parts))
    assert p.device.findings == []
    assert_close(merged(p, partial), merged(p, cpu_partial(p)[None]))


UPSTREAM = {  # by row of the statistics (csrc/core/statistics.h)
    "zero": {},
    "student": {4: -1.0},
    "linear": {11: 0.7, 4: -0.3},
    "general": {11: 0.7, 12: 0.4, 3: 0.2, 4: -0.3, 8: -0.2, 1: 0.1},
    "softened": {16: 0.5, 17: 0.3, 11: 0.1},
}


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize(
    ("size", "kind", "layout", "threads"), [CASES[i] for i in (0, 2, 3, 4, 5, 7)]
)
def test_gradient(modules, upstream: str, size: int, kind: str, layout: dict, threads: int) -> None:
    p = problem(size, kind, **layout)
    stats = merged(p, cpu_partial(p)[None])
    derivative = torch.zeros_like(stats)
    for row, value in UPSTREAM[upstream].items():
        derivative[row] = value
    z, t = (as_torch(a.copy()).bfloat16() for a in (p.student, p.teacher))
    expected = ops.vocab_stats_backward(
        *(stats, derivative, z, t, as_torch(p.labels), size, 0, ALL_FEATURES, TEMPERATURE, IGNORE)
    )
    actual = p.gradient(modules["gradient"], stats.numpy(), derivative.numpy(), threads)
    assert p.device.findings == []
    # One rounding to bfloat16 apart.
    torch.testing.assert_close(as_torch(actual), expected.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("objective", ["shannon", "confidence softened", "static reverse argmax"])
@pytest.mark.parametrize(
    ("size", "kind", "threads", "cluster"),
    [(1000, "", 64, 1), (5000, "masked", 64, 2), (9003, "", 64, 4), (3000, "absent", 64, 2)],
)
@pytest.mark.parametrize("run", RUNS, ids=["exact", "noisy"])
def test_fused(
    modules, request: pytest.FixtureRequest, objective: str, size: int, kind: str, threads: int,
    cluster: int, run: dict,
) -> None:  # fmt: skip
    if cluster > 1 and "sm_80" in request.node.callspec.id:
        pytest.skip("sm_80 has no clusters")
    soft, softened = 2 if "reverse" in objective else 1, "softened" in objective
    weight = {"static": 0, "confidence": 1, "shannon": 2}[objective.split()[0]]
    scale = TEMPERATURE**2 if softened else 1.0
    hard = int("argmax" in objective)
    p = problem(size, kind)
    z, t = (as_torch(a.copy()).bfloat16() for a in (p.student, p.teacher))
    entropy_scale = 1 / math.log(size)
    _, expected = ops.fused_loss_(
        *(z, t, as_torch(p.labels), size, ALL_FEATURES, TEMPERATURE, POWER, IGNORE),
        *(soft, softened, weight, 0.3, entropy_scale, hard),
    )
    settings = (soft, softened, scale, weight, 0.3, entropy_scale, hard)
    losses, gradient = p.fused(modules["fused"], settings, threads, cluster, **run)
    assert p.device.findings == []
    assert_close(as_torch(losses), expected, 1e-5)
    finite = torch.isfinite(expected[0])
    torch.testing.assert_close(as_torch(gradient)[finite], z.float()[finite], rtol=2**-7, atol=2e-6)
