"""CUDA kernels and the package's CPU operators on the same tensors.

Both are within their bound of the float64 formulas, so they are within twice the bound of each
other; where 16-bit gradients are rounded, within two roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vocab_kernels.bounded import Bounded, finite
from vocab_kernels.checks import assert_clean, assert_within
from vocab_kernels.contract import (
    ALL_FEATURES,
    EXPONENTS,
    LOGIT_TYPES,
    Divergence,
    Feature,
    HardLabel,
    LogitType,
    SoftTerm,
    Weighting,
    stat_rows,
)
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import DIFFERENTIABLE, FDivergence, stats_gradient
from vocab_kernels.launchers import Launchers
from vocab_kernels.objectives import LOSSES, Evaluated, Objective
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import ABSENT, FINITE, INFINITE, ordinary
from vocab_kernels.upstream import packed, upstream_of

torch = pytest.importorskip("torch", reason="the CPU operators need it")
ops = pytest.importorskip("bgkd_megatron.ops", reason="the CPU operators are not built")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATTERNS = (*FINITE, *INFINITE, ordinary)
LABELS = (0.0, 1.0, *[0.5] * (len(PATTERNS) - 3), IGNORED)
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)


def tensor(stored: np.ndarray, dtype: LogitType) -> Any:
    """The logits bit for bit."""
    bits = torch.from_numpy(stored.view(np.int32 if dtype.size == 4 else np.int16).copy())
    return bits.view(DTYPES[dtype.name])


def tensors(p: Problem) -> tuple[Any, Any, Any]:
    return (tensor(p.student, p.dtype), tensor(p.teacher, p.dtype), torch.from_numpy(p.label_ids))


def twice(bounded: Bounded, value: np.ndarray) -> Bounded:
    return Bounded(value, 2 * bounded.error)


@dtypes
def test_partial_statistics(launchers: Launchers, dtype: LogitType) -> None:
    p = Problem(dtype, 130 * dtype.vector + 3, (*ABSENT, *PATTERNS), (0.5, 0.5, 0.5, *LABELS), 100,
                1 << 20)  # fmt: skip
    z, t, labels = tensors(p)
    cpu = ops.vocab_stats(z, t, labels, p.total, p.vocab_start, int(ALL_FEATURES),
                          1 / p.inv_temperature, p.power_exponent, IGNORED)  # fmt: skip
    outcome = launchers.vocab_stats(p, Layout(64, 2), noise=1.0)
    assert_clean(outcome)
    bounds = p.model.partial()
    for name, got, value in zip(stat_rows(ALL_FEATURES), outcome.result, cpu.numpy(), strict=True):
        assert_within(twice(bounds[name], value), got, name, p.patterns)


def test_global_statistics(launchers: Launchers) -> None:
    p = Problem(LOGIT_TYPES[0], 200, PATTERNS, LABELS)
    partial = np.stack([stacked(s.model.partial(), ALL_FEATURES) for s in p.shards([0, 70, 120])])
    cpu = ops.merge_stats(torch.from_numpy(partial), torch.from_numpy(p.label_ids),
                          int(ALL_FEATURES), 1 / p.inv_temperature, p.power_exponent,
                          IGNORED)  # fmt: skip
    outcome = launchers.merge_stats(partial, p, noise=1.0)
    assert_clean(outcome)
    bounds = p.model.finished()
    for name, got, value in zip(stat_rows(ALL_FEATURES), outcome.result, cpu.numpy(), strict=True):
        assert_within(twice(bounds[name], value), got, name, PATTERNS)


UPSTREAM = {
    "student": ("student_at_label", "student_sum"),
    "linear": ("forward_kl", "student_at_label", "student_at_teacher_argmax"),
    "general": ("reverse_kl", "forward_kl", "student_entropy", "student_at_label"),
    "softened": DIFFERENTIABLE,
}


@pytest.mark.parametrize("kind", UPSTREAM)
@dtypes
def test_gradient(launchers: Launchers, dtype: LogitType, kind: str) -> None:
    p = Problem(dtype, 130 * dtype.vector + 3, (*FINITE, ordinary), LABELS[: len(FINITE)])
    weights = np.random.default_rng(0).normal(size=(len(UPSTREAM[kind]), p.rows))
    up = dict(zip(UPSTREAM[kind], weights.astype(np.float32), strict=True))
    zeros, names = np.zeros(p.rows, np.float32), stat_rows(ALL_FEATURES)
    packed = np.stack([up.get(name, zeros) for name in names])
    stats = stacked(p.model.finished(), ALL_FEATURES)
    z, t, labels = tensors(p)
    cpu = ops.vocab_stats_backward(
        torch.from_numpy(stats), torch.from_numpy(packed), z, t, labels, p.total, 0,
        int(ALL_FEATURES), 1 / p.inv_temperature, IGNORED,
    )  # fmt: skip
    outcome = launchers.vocab_gradient(p, stats, packed, Layout(64, 2), noise=1.0)
    assert_clean(outcome)
    bound = stats_gradient(p.model, up)
    size = np.abs(bound.value) + bound.error
    both = Bounded(cpu.double().numpy(), 2 * (bound.error + dtype.rounding(size)))
    assert_within(both, dtype.decode(outcome.result), "gradient", p.patterns)


@pytest.mark.parametrize("kind", Divergence, ids=lambda k: k.name)
@dtypes
def test_fdiv(launchers: Launchers, dtype: LogitType, kind: Divergence) -> None:
    """The sums, and the gradient of divergence and statistics; KLs where they are finite."""
    kinds = [*("both labels", "general", "softened", "hybrid", "zero") * 3, "zero", "general"]
    kinds[len(FINITE) : len(PATTERNS) - 1] = ["both labels"] * len(INFINITE)
    p = Problem(dtype, 130 * dtype.vector + 3, PATTERNS, LABELS)
    skew, stats = float(np.float32(0.3)), stacked(p.model.finished(), ALL_FEATURES)
    exact, up = FDivergence(p.model, kind, skew), upstream_of(kinds[: p.rows])
    z, t, labels = tensors(p)
    cpu_stats = torch.from_numpy(stats)
    sums = ops.vocab_fdiv(z, t, labels, cpu_stats, p.total, 0, int(ALL_FEATURES), int(kind), skew,
                          *EXPONENTS, IGNORED)  # fmt: skip
    found = launchers.vocab_fdiv(p, stats, kind, skew, Layout(64, 2), ALL_FEATURES, noise=1.0)
    assert_clean(found)
    for bound, got, value in zip((exact.divergence, exact.slope), found.result, sums.numpy(),
                                 strict=True):  # fmt: skip
        assert_within(twice(bound, value), got, "sum", p.patterns)

    upstream = packed(up, p.rows, ALL_FEATURES)
    of_divergence = np.linspace(-1, 1, p.rows).astype(np.float32)
    cpu = ops.vocab_fdiv_backward(
        cpu_stats, torch.from_numpy(upstream), sums, torch.from_numpy(of_divergence), z, t, labels,
        p.total, 0, int(ALL_FEATURES), 1 / p.inv_temperature, int(kind), skew, *EXPONENTS,
        IGNORED,
    )  # fmt: skip
    outcome = launchers.vocab_fdiv_gradient(
        p, stats, upstream, sums.numpy(), of_divergence, kind, skew, Layout(64, 2), ALL_FEATURES,
        noise=1.0,
    )  # fmt: skip
    assert_clean(outcome)
    expected = exact.combined_gradient(up, of_divergence)
    size = np.abs(expected.value) + expected.error
    both = Bounded(cpu.double().numpy(), 2 * (expected.error + dtype.rounding(size)))
    assert_within(both, dtype.decode(outcome.result), "gradient", p.patterns)


OBJECTIVES = {
    "forward shannon": Objective(SoftTerm.FORWARD, Weighting.SHANNON),
    "reverse tsallis argmax": Objective(
        SoftTerm.REVERSE, Weighting.TSALLIS, HardLabel.TEACHER_ARGMAX
    ),
    "softened confidence": Objective(SoftTerm.FORWARD, Weighting.CONFIDENCE, softened=True),
    "adaptive wsl": Objective(SoftTerm.ADAPTIVE, Weighting.WSL, regularizer=0.125),
    "label confidence": Objective(SoftTerm.FORWARD, Weighting.LABEL_CONFIDENCE),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@dtypes
def test_fused_loss(launchers: Launchers, dtype: LogitType, objective: Objective) -> None:
    p = Problem(dtype, 130 * dtype.vector + 3, (*FINITE, ordinary), (0.0, *[0.5] * 11, IGNORED))
    z, t, labels = tensors(p)
    features = int(objective.features | Feature.LABEL)
    _, losses = ops.fused_loss_(
        z, t, labels, p.total, features, 1 / p.inv_temperature, p.power_exponent, IGNORED,
        *objective.arguments,
    )  # fmt: skip
    outcome = launchers.fused_loss(p, objective, Layout(64, 2), noise=1.0)
    assert_clean(outcome)
    exact = Evaluated(objective, p.model)
    for k in range(len(LOSSES)):
        bound = twice(exact.losses[k], losses[k].numpy())
        assert_within(bound, outcome.losses[k], f"loss {k}", p.patterns)
    size = np.abs(finite(exact.gradient.value)) + exact.gradient.error
    both = Bounded(z.double().numpy(), 2 * (exact.gradient.error + dtype.rounding(size)))
    assert_within(both, dtype.decode(outcome.result), "gradient", p.patterns)
