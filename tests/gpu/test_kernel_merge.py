"""merge_stats and loss on the executor: shards' exact partial statistics in, dense values out.

(The merge of a row's parts runs in every test of vocab_stats that has some.)
"""

from __future__ import annotations

import numpy as np
import pytest
from vocab_kernels.bounded import Bounded
from vocab_kernels.build import OTHER_ARCHITECTURES
from vocab_kernels.checks import assert_clean, assert_stats, assert_within
from vocab_kernels.contract import ALL_FEATURES, FP16, FP32, Feature, stat_rows
from vocab_kernels.formulas import stacked
from vocab_kernels.launchers import Launchers
from vocab_kernels.objectives import (
    ADAPTIVE,
    LOSSES,
    OBJECTIVES,
    REVERSE,
    Evaluated,
    Objective,
)
from vocab_kernels.problem import IGNORED, Layout, Problem
from vocab_kernels.rows import (
    FINITE,
    INFINITE,
    common_holes,
    ordinary,
    student_holes,
    teacher_holes,
)

COLUMNS = 211
PATTERNS = (*FINITE, *INFINITE, ordinary)
LABELS = (0.0, 1.0, *[0.5] * (len(PATTERNS) - 3), IGNORED)
# one shard; two; a shard without columns first, in the middle and last, and one of one column
CUTS = {"whole": [], "halves": [105], "empty shards": [0, 70, 70, 71, COLUMNS]}
# What keeps a soft term finite.
HOLES = {REVERSE: student_holes, ADAPTIVE: common_holes}


def partials(p: Problem, cuts: list[int], features: Feature) -> np.ndarray:
    return np.stack([stacked(shard.model.partial(), features) for shard in p.shards(cuts)])


@pytest.mark.parametrize("options", [{}, {"seed": 1, "noise": 1.0}], ids=["in step", "random"])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_values(launchers: Launchers, cuts: list[int], options: dict[str, float]) -> None:
    p = Problem(FP32, COLUMNS, PATTERNS, LABELS)
    outcome = launchers.merge_stats(partials(p, cuts, ALL_FEATURES), p, **options)
    assert_clean(outcome)
    assert_stats(p.model.finished(), outcome, PATTERNS)


@pytest.mark.parametrize(
    "features",
    [Feature(0), Feature.LABEL | Feature.STUDENT_ENTROPY, Feature.TEACHER,
     Feature.TEACHER | Feature.FORWARD | Feature.POWER, Feature.TEACHER | Feature.SOFTENED],
    ids=int,
)  # fmt: skip
def test_some_features(launchers: Launchers, features: Feature) -> None:
    """Rows that were not asked for are neither read nor written."""
    p = Problem(FP32, COLUMNS, PATTERNS, LABELS)
    outcome = launchers.merge_stats(partials(p, [70], features), p, features)
    assert_clean(outcome)
    assert_stats(p.model.finished(), outcome, PATTERNS, features)


def test_many_tokens(launchers: Launchers) -> None:
    """More than one block of 128 threads, and not a whole number of them. No labels at all."""
    patterns = [PATTERNS[k % len(PATTERNS)] for k in range(300)]
    p, features = Problem(FP32, 40, patterns, None), ALL_FEATURES & ~Feature.LABEL
    outcome = launchers.merge_stats(partials(p, [11, 12, 13], features), p, features)
    assert_clean(outcome)
    assert [launch.grid for launch in outcome.launches] == [(3, 1, 1)]
    assert_stats(p.model.finished(), outcome, patterns, features)


def test_after_vocab_stats(launchers: Launchers) -> None:
    """From logits to global statistics through both kernels; each shard has its own layout."""
    p = Problem(FP16, 1200, PATTERNS, LABELS)
    layouts = [Layout(32), Layout(64, 1, (1, 2, 0), (3, 1, 0)), Layout(), Layout(32, 2)]
    found = []
    for shard, layout in zip(p.shards([300, 301, 301]), layouts, strict=True):
        outcome = launchers.vocab_stats(shard, layout, noise=1.0)
        assert_clean(outcome)
        found.append(outcome.result)
    outcome = launchers.merge_stats(np.stack(found), p, noise=1.0)
    assert_clean(outcome)
    assert_stats(p.model.finished(), outcome, PATTERNS)


@pytest.mark.parametrize("options", [{}, {"seed": 1, "noise": 1.0}], ids=["in step", "random"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_loss(launchers: Launchers, objective: Objective, options: dict[str, float]) -> None:
    """The objective on the merged statistics, and its derivatives."""
    holes = HOLES.get(objective.soft, teacher_holes)
    patterns = [*FINITE, holes, ordinary]
    p = Problem(FP32, COLUMNS, patterns, (0.0, 1.0, *[0.5] * (len(patterns) - 3), IGNORED))
    partial = partials(p, CUTS["empty shards"], objective.features)
    outcome = launchers.loss(partial, p, objective, **options)
    assert_clean(outcome)
    exact, stats, zero = (
        Evaluated(objective, p.model),
        p.model.finished(),
        Bounded(np.zeros(p.rows)),
    )
    for k, name in enumerate(stat_rows(objective.features)):
        assert_within(stats[name], outcome.global_stats[k], name, patterns)
        assert_within(exact.upstream.get(name, zero), outcome.result[k], f"d {name}", patterns)
    for k, name in enumerate(LOSSES):
        assert_within(exact.losses[k], outcome.losses[k], name, patterns)


@pytest.mark.parametrize("arch", OTHER_ARCHITECTURES)
def test_other_architectures(launchers: Launchers, arch: str) -> None:
    with launchers.on(arch, "merge_kernel", "loss_kernel"):
        test_values(launchers, CUTS["empty shards"], {})
        test_loss(launchers, OBJECTIVES["softened reverse tsallis argmax"], {})
