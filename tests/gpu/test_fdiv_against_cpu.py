"""The kernels of the second sweep against the CPU operators, which are tested against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from bfloat16 import from_bfloat16
from compiler import Compiler
from kernel_problem import (
    ALL_FEATURES,
    FLAGS,
    IGNORE,
    SOURCES,
    TEMPERATURE,
    FdivArgs,
    FdivGradientArgs,
    Problem,
)
from test_against_cpu import UPSTREAM, as_torch, assert_close, cpu_partial, merged, problem

torch = pytest.importorskip("torch")
ops = pytest.importorskip("bgkd_megatron.ops")

LAMBDA = 0.3
THREADS = 64
# (columns, logits, layout in memory)
CASES = [
    (5, "", {}),
    (1001, "", {"slack": 0}),
    (700, "", {"start": 2, "slack": 3}),
    (1000, "absent", {}),
    (1000, "masked", {}),
]


@pytest.fixture(scope="module", params=["sm_90a", "sm_80"])
def module(request: pytest.FixtureRequest, nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(SOURCES / "fdiv.cu", request.param, FLAGS)


def template_arguments(kind: int) -> str:
    """Of the kernels, mangled."""
    return f"I13__nv_bfloat16LNS_11FDivergenceE{kind}E"


def inputs(p: Problem) -> tuple[Any, ...]:
    z, t = (as_torch(a.copy()).bfloat16() for a in (p.student, p.teacher))
    return z, t, as_torch(p.labels)


def cpu_sums(p: Problem, stats: Any, kind: int) -> Any:
    rest = (stats, p.vocab_size, 0, ALL_FEATURES, kind, LAMBDA, IGNORE)
    return ops.vocab_fdiv(*inputs(p), *rest)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("size", "logits", "layout"), CASES)
@pytest.mark.parametrize("parts", [1, 2])
def test_sums(
    module: ptx.Module, parts: int, size: int, logits: str, layout: dict[str, int], kind: int
) -> None:
    """Parts: each of them is a block; they are added, here by the test."""
    if parts > 1 and size < 16 * THREADS:
        size *= 2
    p = problem(size, logits, **layout)
    stats = merged(p, cpu_partial(p)[None])
    on_device = p.device.upload(stats.numpy(), "stats")
    out = p.device.allocate((parts * 2, p.num_tokens), np.float32, "sums")
    shard, labels, _ = p.head()
    args = FdivArgs(
        *(shard, labels, kind, LAMBDA, ALL_FEATURES, p.num_tokens, on_device.address, out.address)
    )
    p.device.launch(
        module, f"11fdiv_kernel{template_arguments(kind)}", grid=(p.num_tokens, parts),
        block=THREADS, arguments=[bytes(args), out.address, p.columns_per_part(THREADS, parts)],
        seed=3, noise=1.0,
    )  # fmt: skip
    assert p.device.findings == []
    sums = as_torch(out.read()).reshape(parts, 2, p.num_tokens).sum(dim=0)
    assert_close(sums, cpu_sums(p, stats, kind), 1e-5)


# Where one model excludes what the other one does not, KLs are infinite, and their gradient NaN.
GRADIENT_CASES = [
    (*case, upstream)
    for case in CASES
    for upstream in UPSTREAM
    if "absent" not in case or upstream in ("zero", "student")
]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("size", "logits", "layout", "upstream"), GRADIENT_CASES)
def test_gradient(
    module: ptx.Module, size: int, logits: str, layout: dict[str, int], upstream: str, kind: int
) -> None:
    """Of divergence and statistics, over the logits. Each row is written by one of two launches."""
    p = problem(size, logits, **layout)
    stats = merged(p, cpu_partial(p)[None])
    derivative = torch.zeros_like(stats)
    for row, value in UPSTREAM[upstream].items():
        derivative[row] = value
    derivative[:, 2] = 0  # of one row the divergence alone
    of_divergence = torch.tensor([0.7, 0.0, -0.4])
    sums = cpu_sums(p, stats, kind)
    tensors = (stats, derivative, sums, of_divergence)
    rest = (size, 0, ALL_FEATURES, TEMPERATURE, kind, LAMBDA, IGNORE)
    expected = ops.vocab_fdiv_backward(*tensors, *inputs(p), *rest)

    addresses = [p.device.upload(x.numpy(), "input").address for x in tensors]
    args = FdivGradientArgs(
        *(*p.head(), p.num_tokens, *addresses[:2], p.z.address, p.stride, p.vocab_size),
        *(kind, LAMBDA, *addresses[2:]),
    )
    for general in (0, 1):
        p.device.launch(
            module, f"fdiv_gradient_kernel{template_arguments(kind)}Lb{general}E",
            grid=(p.num_tokens, 1), block=THREADS,
            arguments=[bytes(args), p.columns_per_part(THREADS, 1)],
        )  # fmt: skip
    assert p.device.findings == []
    actual = as_torch(from_bfloat16(p.z.read()))
    # One rounding to bfloat16 apart.
    torch.testing.assert_close(actual, expected.float(), rtol=2**-7, atol=1e-6)
