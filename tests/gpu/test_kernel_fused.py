"""fused_loss on the executor: losses, statistics and gradient against dense formulas in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vocab_kernels.build import SWEEP_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_gradient, assert_within
from vocab_kernels.contract import (
    FP16,
    FP32,
    LOGIT_TYPES,
    Feature,
    LogitType,
    SoftTerm,
    Weighting,
    stat_rows,
)
from vocab_kernels.headers import FUSED_INSTANCES, fused_kernel
from vocab_kernels.launchers import Launchers
from vocab_kernels.objectives import (
    ADAPTIVE,
    ARGMAX,
    FORWARD,
    LOSSES,
    OBJECTIVES,
    REVERSE,
    Evaluated,
    Objective,
)
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import (
    FINITE,
    Pattern,
    common_holes,
    even,
    maxima_at,
    ordinary,
    student_holes,
    student_nan,
    student_overflow,
    teacher_holes,
    teacher_nan,
)
from vocab_kernels.shapes import elements, ends, shapes

# (shape, size of the cluster, in place, padding)
CASES = [
    ("one column", 1, True, 0),
    ("part of a vector", 2, False, 3),  # a block without columns
    ("whole rounds", 2, True, 0),
    ("rounds and a tail", 2, False, 5),
    ("misaligned", 1, True, 3),
    ("three warps, three parts", 4, True, 3),
    ("three warps, three parts", 8, False, 0),  # blocks without columns at the end
]
# What keeps a soft term finite.
HOLES: dict[SoftTerm, Pattern] = {REVERSE: student_holes, ADAPTIVE: common_holes}
sweeps = pytest.mark.parametrize("launchers", SWEEP_ARCHITECTURES, indirect=True)
dtypes = pytest.mark.parametrize("dtype", LOGIT_TYPES, ids=lambda d: d.name)
instances = pytest.mark.parametrize("instance", FUSED_INSTANCES, ids=int)


def most_of(instance: Feature) -> Objective:
    """An objective that needs what the instance has."""
    weight = Weighting.TSALLIS if Feature.POWER in instance else Weighting.SHANNON
    return Objective(REVERSE, weight, softened=Feature.SOFTENED in instance)


def problem(dtype: LogitType, columns: int, objective: Objective) -> Problem:
    """A ruled out token makes the other divergence infinite; this objective's must stay finite."""
    holes: Pattern = HOLES.get(objective.soft, teacher_holes)
    patterns = [*FINITE, holes, ordinary]
    return Problem(dtype, columns, patterns, [0.0, 1.0, *[0.5] * (len(patterns) - 3), IGNORED])


def check(
    launchers: Launchers, p: Problem, objective: Objective, layout: Layout,
    instance: Feature | None = None, **options: Any,
) -> None:  # fmt: skip
    """instance: all its statistics are asked for, whether or not the objective needs them."""
    features = instance or objective.features
    outcome = launchers.fused_loss(p, objective, layout, features=features, **options)
    assert_clean(outcome)
    if instance:
        assert fused_kernel(p.dtype, instance) in outcome.launches[0].kernel
    exact, stats = Evaluated(objective, p.model), p.model.finished()
    for name, got in zip(stat_rows(features), outcome.global_stats, strict=True):
        assert_within(stats[name], got, name, p.patterns)
    for k, name in enumerate(LOSSES):
        assert_within(exact.losses[k], outcome.losses[k], name, p.patterns)
    assert_gradient(exact.gradient, outcome, p.dtype, p.patterns)


@sweeps
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@dtypes
def test_objectives(launchers: Launchers, dtype: LogitType, objective: Objective) -> None:
    p = problem(dtype, 130 * dtype.vector + 3, objective)
    check(launchers, p, objective, Layout(32, 2), padding=2, noise=1.0)


@sweeps
@pytest.mark.parametrize(("name", "cluster", "in_place", "padding"), CASES)
@dtypes
def test_shapes(
    launchers: Launchers, dtype: LogitType, name: str, cluster: int, in_place: bool, padding: int
) -> None:
    objective, shape = OBJECTIVES["forward"], shapes(dtype)[name]
    p = problem(dtype, shape.columns, objective)
    layout = replace(shape.layout, parts=cluster)
    check(launchers, p, objective, layout, in_place=in_place, padding=padding)


@sweeps
@instances
@dtypes
def test_any_schedule(launchers: Launchers, dtype: LogitType, instance: Feature) -> None:
    objective = most_of(instance)
    p = problem(dtype, 130 * dtype.vector + 3, objective)
    p = replace(p, patterns=[ordinary, p.patterns[-2], ordinary], labels=[0.0, 0.5, IGNORED])
    check(launchers, p, objective, Layout(64, 2), instance, seed=1, noise=1.0)


@pytest.mark.parametrize("name", ["three warps, three parts", "whole rounds"])
@instances
@dtypes
def test_instance(launchers: Launchers, dtype: LogitType, instance: Feature, name: str) -> None:
    """Every instance on rows of every kind, with all its statistics."""
    shape, objective = shapes(dtype)[name], most_of(instance)
    p = problem(dtype, shape.columns, objective)
    layout = replace(shape.layout, parts=4 if shape.layout.parts > 1 else 1)
    check(launchers, p, objective, layout, instance, padding=3)


def test_no_labels(launchers: Launchers) -> None:
    """The teacher's argmax as the hard label: every row counts."""
    objective = OBJECTIVES["reverse shannon argmax"]
    p = replace(problem(FP16, 300, objective), labels=None)
    check(launchers, p, objective, Layout(32, 2))


@instances
@dtypes
def test_sm_80(launchers: Launchers, dtype: LogitType, instance: Feature) -> None:
    """sm_80 has no clusters: a block takes the whole row."""
    shape, objective = shapes(dtype)["three warps, three parts"], most_of(instance)
    layout = replace(shape.layout, parts=1)
    p = problem(dtype, shape.columns, objective)
    with launchers.on("sm_80", fused_kernel(dtype, instance)):
        check(launchers, p, objective, layout, instance)


def test_wrong_label_shows(launchers: Launchers) -> None:
    """The host cannot look at labels without waiting: the loss of a wrong one is NaN."""
    p = Problem(FP32, 100, [ordinary] * 3, [0.5, 100, -1])
    outcome = launchers.fused_loss(p, OBJECTIVES["forward"])
    assert_clean(outcome)
    assert np.isnan(outcome.losses[0]).tolist() == [False, True, True]


@sweeps
@instances
def test_nan_shows(launchers: Launchers, instance: Feature) -> None:
    """A logit that is no number: no loss, and no gradient."""
    p = Problem(FP16, 100, [student_nan, teacher_nan, student_overflow, ordinary])
    outcome = launchers.fused_loss(p, most_of(instance), features=instance)
    assert_clean(outcome)
    assert np.isnan(outcome.losses[0]).tolist() == [True, True, True, False]
    assert np.isnan(outcome.result).any(1).tolist() == [True, True, True, False]


def loops(instance: Feature) -> list[Objective]:
    """Those with a loop of their own over the row's elements; a label or an argmax in each."""
    softened = Objective(REVERSE, hard=ARGMAX, softened=True)
    both = [Objective(FORWARD), Objective(FORWARD, hard=ARGMAX), Objective(REVERSE, hard=ARGMAX)]
    return [*both, softened] if Feature.SOFTENED in instance else both


@instances
@dtypes
def test_every_end(launchers: Launchers, dtype: LogitType, instance: Feature) -> None:
    for shape in ends(dtype):
        for objective in loops(instance)[1:]:
            p = Problem(dtype, shape.columns, [even], [1.0])
            check(launchers, p, objective, shape.layout, instance, in_place=False)


@instances
@dtypes
def test_every_element(launchers: Launchers, dtype: LogitType, instance: Feature) -> None:
    """Has a label, and the teacher's maximum, which stand apart."""
    columns = elements(dtype)
    patterns = [maxima_at(c, d) for c, d in zip(columns, columns[::-1], strict=True)]
    p = Problem(dtype, 64 * dtype.vector, patterns, columns)
    for objective in loops(instance):
        for start in (0, 1):
            layout = Layout(slack=(start,) * 3, start=(start,) * 3)
            check(launchers, p, objective, layout, instance)
