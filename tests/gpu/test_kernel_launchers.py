"""The launchers' host code: plans, grids, streams, workspaces, and what they do about errors."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from stand_in_runtime import LAUNCH_FAILURE
from vocab_kernels.checks import assert_clean, assert_gradient, assert_stats
from vocab_kernels.contract import (
    ALL_FEATURES,
    BF16,
    FP32,
    LOGIT_TYPES,
    STATS,
    Divergence,
    Feature,
    SoftTerm,
    stat_rows,
)
from vocab_kernels.formulas import stacked
from vocab_kernels.gradients import stats_gradient
from vocab_kernels.headers import CudaPlan, FusedPlan, SharedMemory, structs
from vocab_kernels.launchers import STREAM, Launchers, Outcome
from vocab_kernels.objectives import Objective
from vocab_kernels.problem import Layout, Problem
from vocab_kernels.rows import ordinary

INVALID_VALUE, INVALID_CONFIGURATION = 1, 9
H100_SMS = 132
H100 = SharedMemory(227 * 1024, 228 * 1024, 8)
A100 = SharedMemory(163 * 1024, 164 * 1024, 1)
FORWARD = Objective(SoftTerm.FORWARD)


def kernels(outcome: Outcome) -> list[str]:
    """The names without their template arguments."""
    known = ("vocab_stats_kernel", "merge_kernel", "vocab_gradient_kernel", "fdiv_gradient_kernel",
             "fdiv_kernel", "add_parts_kernel", "fused_kernel")  # fmt: skip
    return [next(k for k in known if k in launch.kernel) for launch in outcome.launches]


# ---- what Python knows of the headers


def test_contract(launchers: Launchers) -> None:
    library = launchers.library
    sizes = {name: library.struct_size(name.encode()) for name in vars(structs)}
    assert sum(size > 0 for size in sizes.values()) == 11
    for name, size in sizes.items():
        assert size in (0, ctypes.sizeof(getattr(structs, name))), name
    names = [library.stat_name(k).decode() for k in range(len(STATS))]
    assert names == list(STATS)
    assert [library.stat_features(k) for k in range(len(STATS))] == [*map(int, STATS.values())]


# ---- the plans that ship, run as they are


# few tokens take several blocks each, many one; a row of less than a warp's columns
@pytest.mark.parametrize(("tokens", "columns"), [(1, 9000), (3, 5000), (5, 40)])
def test_own_plan(launchers: Launchers, tokens: int, columns: int) -> None:
    for dtype in LOGIT_TYPES:
        p = Problem(dtype, columns, [ordinary] * tokens)
        plan = launchers.plan(tokens, columns, dtype.size, H100_SMS)
        outcome = launchers.vocab_stats(p, plan=plan)
        assert_clean(outcome)
        assert_stats(p.model.partial(), outcome, p.patterns)
        assert outcome.launches[0].grid == (tokens, plan.parts, 1)
        assert outcome.launches[0].block == (plan.threads, 1, 1)

        by_name = {"forward_kl": np.ones(tokens), "student_at_label": -np.ones(tokens)}
        up = np.zeros((18, tokens), np.float32)
        for name, values in by_name.items():
            up[stat_rows(ALL_FEATURES).index(name)] = values
        stats = stacked(p.model.finished(), ALL_FEATURES)
        gradient = launchers.vocab_gradient(p, stats, up, plan=plan)
        assert_clean(gradient)
        assert_gradient(stats_gradient(p.model, by_name), gradient, dtype, p.patterns)


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("num_sms", [1, 108, H100_SMS, 148])
def test_plans_cover_the_row(launchers: Launchers, num_sms: int, element_size: int) -> None:
    """Every column in one part, parts of whole rounds, blocks that may be launched."""
    for tokens in (0, 1, 7, 64, 1000, 1 << 20):
        for columns in (0, 1, 31, 256, 4097, 16032, 128256, 1 << 24):
            plan = launchers.plan(tokens, columns, element_size, num_sms)
            step = plan.threads * 32 // element_size
            assert plan.threads % 32 == 0
            assert 32 <= plan.threads <= 256
            assert 1 <= plan.parts <= 65535
            assert plan.columns_per_part % step == 0
            assert plan.parts * plan.columns_per_part >= columns
            assert (plan.parts - 1) * plan.columns_per_part < max(columns, 1)


@pytest.mark.parametrize(("memory", "fits"), [(H100, 200_000), (A100, 30_000)])
@pytest.mark.parametrize("element_size", [2, 4])
def test_fused_plans_fit(
    launchers: Launchers, memory: SharedMemory, fits: int, element_size: int
) -> None:
    for columns in (1, 4096, 4097, 16032, 32000, 50257, 128256, 151936, 262144):
        plan = launchers.fused_plan(columns, element_size, memory)
        if columns * element_size <= 2 * fits:
            assert plan.cluster, columns
        if plan.cluster == 0:
            # not even the largest cluster with all the memory that a block may have
            assert columns * 2 * element_size > memory.max_cluster * (memory.per_block - 2048) * 0.9
            continue
        assert plan.cluster in (1, 2, 4, 8)
        assert plan.cluster <= memory.max_cluster
        assert plan.cluster * plan.columns_per_part >= columns
        assert plan.shared_bytes == 2 * plan.columns_per_part * element_size
        assert plan.shared_bytes + 2048 <= memory.per_block


def test_fused_plan_runs(launchers: Launchers) -> None:
    """Beyond the 48 KB of shared memory that need no asking for."""
    p = Problem(BF16, 14_000, [ordinary])
    plan = launchers.fused_plan(p.columns, BF16.size, H100)
    assert plan.shared_bytes > 48 * 1024
    outcome = launchers.fused_loss(p, FORWARD, plan=plan)
    assert_clean(outcome)
    (launch,) = outcome.launches
    assert (launch.grid, launch.dynamic_shared) == ((1, plan.cluster, 1), plan.shared_bytes)


# ---- what is launched


def problem(columns: int = 700, tokens: int = 2) -> Problem:
    return Problem(FP32, columns, [ordinary] * tokens)


def run_all(launchers: Launchers, p: Problem, layout: Layout) -> dict[str, Outcome]:
    teacher = Feature.TEACHER
    stats = np.zeros((len(stat_rows(teacher)), p.rows), np.float32)
    sums, ones = np.zeros((2, p.rows), np.float32), np.ones(p.rows, np.float32)
    kind = Divergence.SKEW_REVERSE
    return {
        "vocab_stats": launchers.vocab_stats(p, layout, teacher),
        "merge_stats": launchers.merge_stats(stats[None], p, teacher),
        "vocab_gradient": launchers.vocab_gradient(p, stats, stats, layout, teacher),
        "vocab_fdiv": launchers.vocab_fdiv(p, stats, kind, 0.5, layout),
        "vocab_fdiv_gradient": launchers.vocab_fdiv_gradient(
            p, stats, stats, sums, ones, kind, 0.5, layout
        ),
        "fused_loss": launchers.fused_loss(p, FORWARD, layout),
    }


def test_streams_and_grids(launchers: Launchers) -> None:
    """Parts of rows take a second launch; every launch goes into the caller's stream."""
    outcomes = run_all(launchers, problem(), Layout(32, 2))
    assert {name: kernels(outcome) for name, outcome in outcomes.items()} == {
        "vocab_stats": ["vocab_stats_kernel", "merge_kernel"],
        "merge_stats": ["merge_kernel"],
        "vocab_gradient": ["vocab_gradient_kernel"],
        "vocab_fdiv": ["fdiv_kernel", "add_parts_kernel"],
        "vocab_fdiv_gradient": ["fdiv_gradient_kernel"],
        "fused_loss": ["fused_kernel"],
    }
    for outcome in outcomes.values():
        assert {launch.stream for launch in outcome.launches} == {STREAM}
    clusters = [outcome.launches[0].cluster for outcome in outcomes.values()]
    assert clusters == [None] * 5 + [(1, 2, 1)]


def test_whole_rows_take_one_launch(launchers: Launchers) -> None:
    """... and no cluster, which older devices do not know."""
    for outcome in run_all(launchers, problem(), Layout(32)).values():
        assert len(outcome.launches) == 1
        assert outcome.launches[0].cluster is None


def test_no_tokens(launchers: Launchers) -> None:
    """A grid of 0 blocks would be an error."""
    for outcome in run_all(launchers, problem(tokens=0), Layout(32, 2)).values():
        assert (outcome.code, outcome.launches) == (0, [])


def test_no_gradient_columns(launchers: Launchers) -> None:
    outcomes = run_all(launchers, problem(columns=0), Layout())
    for name in ("vocab_gradient", "vocab_fdiv_gradient"):
        assert (outcomes[name].code, outcomes[name].launches) == (0, [])


# ---- errors


def test_errors_are_returned(launchers: Launchers) -> None:
    """More threads than __launch_bounds__: the launch fails, and nothing follows it."""
    stats = launchers.vocab_stats(problem(), plan=CudaPlan(512, 2, 4096))
    assert (stats.code, kernels(stats)) == (LAUNCH_FAILURE, ["vocab_stats_kernel"])
    fused = launchers.fused_loss(problem(), FORWARD, plan=FusedPlan(1, 512, 4096, 32768))
    assert fused.code == LAUNCH_FAILURE
    gradient = launchers.vocab_gradient(
        problem(), *np.zeros((2, 18, 2), np.float32), plan=CudaPlan(512, 1, 4096)
    )
    assert gradient.code == LAUNCH_FAILURE
    fdiv = run_all(launchers, problem(), Layout(512, 2))
    assert fdiv["vocab_fdiv"].code == fdiv["vocab_fdiv_gradient"].code == LAUNCH_FAILURE
    assert kernels(fdiv["vocab_fdiv"]) == ["fdiv_kernel"]


def test_rows_that_no_cluster_holds(launchers: Launchers) -> None:
    plan = launchers.fused_plan(1 << 22, 2, H100)
    assert plan.cluster == 0
    outcome = launchers.fused_loss(problem(), FORWARD, plan=plan)
    assert (outcome.code, outcome.launches) == (INVALID_CONFIGURATION, [])


def test_more_shared_memory_than_there_is(launchers: Launchers) -> None:
    plan = FusedPlan(1, 32, 1024, H100.per_block + 1024)
    outcome = launchers.fused_loss(problem(), FORWARD, plan=plan)
    assert (outcome.code, outcome.launches) == (INVALID_VALUE, [])


def test_rows_that_do_not_exist(launchers: Launchers) -> None:
    """The executor would see it: one column more than the memory has."""
    p = problem()
    wrong = replace(p, columns=p.columns)
    wrong._stored = (p.student[:, :-1], p.teacher[:, :-1])
    outcome = launchers.vocab_stats(wrong)
    assert outcome.code == LAUNCH_FAILURE
    assert outcome.device.findings[0].kind == "out of bounds"
