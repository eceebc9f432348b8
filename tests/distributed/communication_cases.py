"""What the ranks tell each other: one collective, nothing superfluous, nothing after a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launch import Case
from sharded_problem import Problem
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import ProfilerActivity, profile
from vocab_inputs import computed, make_logits

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, Weighting
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats


@contextmanager
def count_collectives(expected: dict[str, int]) -> Iterator[None]:
    """Counts in two independent ways: what is dispatched, and what the profiler saw running."""
    with CommDebugMode() as dispatched, profile(activities=[ProfilerActivity.CPU]) as seen:
        yield
    counts = {str(op): number for op, number in dispatched.get_comm_counts().items()}
    assert sum(counts.values()) == sum(expected.values()), counts
    ran = [event.name for event in seen.events() or [] if event.name.startswith("gloo:")]
    assert sorted(ran) == sorted(name for name, n in expected.items() for _ in range(n)), ran


def one_collective_forward_none_backward(group: dist.ProcessGroup) -> None:
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    objective = HybridObjective(ObjectiveConfig(entropy="tsallis", temperature=2.0), 1200)
    leaf = problem.columns(problem.student, shard).requires_grad_()
    with count_collectives({"gloo:all_gather": 1}):
        losses, _ = hybrid_loss(
            leaf.clone(),
            problem.columns(problem.teacher, shard),
            problem.labels,
            objective,
            shard=shard,
            inplace_backward=True,
        )
    with count_collectives({}):
        losses.loss.sum().backward()
    assert leaf.grad is not None


def only_the_wanted_statistics_travel(group: dist.ProcessGroup) -> None:
    """Rows of the one all-gather: what was asked for, 13 for the default objective."""
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    student, teacher = (problem.columns(x, shard) for x in (problem.student, problem.teacher))
    default = HybridObjective(ObjectiveConfig(), 1200).features
    for features, most in [(Feature.LABEL, 4), (default, 13)]:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            vocab_stats(
                student,
                teacher if Feature.TEACHER in features else None,
                problem.labels,
                shard=shard,
                features=features,
            )
        sent = [
            math.prod(shape)
            for event in seen.events() or []
            if event.name == "c10d::_allgather_base_"
            for shape in event.input_shapes[1:2]
        ]
        assert len(sent) == 1, sent
        assert sent[0] <= most * 9, sent


def bad_input_is_refused_before_any_collective(group: dist.ProcessGroup) -> None:
    """Otherwise the other ranks would wait; all see the same labels and refuse alike."""
    problem = Problem.random(3, 40)
    shard = VocabShard.even(40, -(-40 // group.size()), group)
    bad = Problem(problem.student, problem.teacher, torch.tensor([0, 1, 40]))
    message = r"labels\[2\] = 40 is outside the vocabulary of 40"
    with count_collectives({}), pytest.raises(ValueError, match=message):
        bad.solve(shard)


def a_group_of_the_wrong_size_is_refused(group: dist.ProcessGroup) -> None:
    """The output layer is cut over more ranks than the group given, or over fewer."""
    for cut in (VocabShard.even, VocabShard.uneven):
        with pytest.raises(ValueError, match="columns, together fewer than the vocabulary"):
            cut(10 * group.size() + 1, 10, group)
        # A group of which each part holds the whole vocabulary: twice as many columns as tokens.
        with pytest.raises(ValueError, match="larger than the one"):
            cut(100_000, 100_000, group)
    widths = (10,) * (group.size() + 1)
    with pytest.raises(ValueError, match="must be one width for each of"):
        VocabShard(10 * group.size(), widths, group)


def a_group_of_others_is_refused(group: dist.ProcessGroup) -> None:
    first = dist.new_group([0])  # on the other ranks no group at all
    if group.rank() == 0:
        assert VocabShard.even(10, 10, first).tp_size == 1
    else:
        with pytest.raises(TypeError, match="ProcessGroup that this rank belongs to"):
            VocabShard.even(10, 10, first)


def uneven_compares_the_vocabulary(group: dist.ProcessGroup) -> None:
    """On every rank the same error, although each alone sees nothing wrong."""
    with pytest.raises(
        ValueError, match=r"^VocabShard: .* differ in vocab_size \(20 on rank \[0\]"
    ):
        VocabShard.uneven(21 if group.rank() else 20, 20, group)


def uneven_refused_by_one_is_told_to_all(group: dist.ProcessGroup) -> None:
    error, columns = (ValueError, 20) if group.rank() else (TypeError, 20.0)
    with pytest.raises(error, match=r"num_columns must be an int, got 20\.0 of type float"):
        VocabShard.uneven(20, columns, group)  # type: ignore[arg-type]


def call_checked(
    group: dist.ProcessGroup,
    *,
    num_tokens: int = 9,
    first_label: int = 2,
    vocab_size: int = 1200,
    columns: int = 600,
    extra_columns: int = 0,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    teacher_gradient: bool = False,
    **options: Any,
) -> None:
    """vocab_stats with check_ranks; what a rank does not pass is the same on all."""
    shape = num_tokens, columns + extra_columns
    teacher = make_logits(*shape, seed=1, dtype=teacher_dtype or dtype)
    vocab_stats(
        make_logits(*shape, seed=0, dtype=dtype),
        teacher.requires_grad_(teacher_gradient),
        torch.arange(first_label, first_label + num_tokens),
        shard=VocabShard.even(vocab_size, columns, group),
        check_ranks=True,
        **{"features": Feature.LABEL | Feature.TEACHER, **options},
    )


DIFFERING: dict[str, dict[str, Any]] = {
    "rows of student_logits": {"num_tokens": 10},
    "dtype of student_logits": {"dtype": torch.bfloat16},
    "labels": {"first_label": 3},
    "vocab_size": {"vocab_size": 1199},
    "widths": {"columns": 601},
    "features": {"features": Feature.LABEL | Feature.TEACHER | Feature.STUDENT_ENTROPY},
    "temperature": {"temperature": 3.0},
    "power_exponent": {"power_exponent": 0.5},
    "ignore_index": {"ignore_index": -1},
}
"""What the last rank passes instead, by what the message must name."""


def ranks_that_differ_are_named(group: dist.ProcessGroup) -> None:
    """With check_ranks every rank raises, also where the all-gather would abort the process."""
    last = group.size() - 1
    call_checked(group)
    others = re.escape(str(list(range(last))))
    for name, difference in DIFFERING.items():
        message = rf"^vocab_stats: .*\b{name} \(.* on rank {others}, .* on rank \[{last}\]\)"
        with pytest.raises(ValueError, match=message):
            call_checked(group, **difference if group.rank() == last else {})
    with pytest.raises(ValueError, match=r"features \(TEACHER\|LABEL on rank"):
        call_checked(group, **DIFFERING["features"] if group.rank() == last else {})


REFUSED_BY_ONE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": (
        {"teacher_dtype": torch.bfloat16},
        TypeError,
        "teacher_logits must have the student's dtype Float, got BFloat16",
    ),
    "columns": (
        {"extra_columns": 1},
        ValueError,
        "the shard describes 600 local columns, student_logits have shape (9, 601)",
    ),
    "requires_grad": ({"teacher_gradient": True}, ValueError, "teacher_logits require a gradient"),
}
"""What the last rank passes instead, its error, and the message."""


def what_one_rank_refuses_is_told_to_all(group: dist.ProcessGroup, name: str) -> None:
    """With check_ranks no rank waits for one that has raised."""
    change, error, message = REFUSED_BY_ONE[name]
    last = group.size() - 1
    if group.rank() == last:
        with pytest.raises(error, match=re.escape(message)):
            call_checked(group, **change)
    else:
        told = (
            rf"^vocab_stats: refused on rank {last} \(.*{re.escape(message)}.*this rank are good$"
        )
        with pytest.raises(ValueError, match=told):
            call_checked(group)


def objectives_that_differ_are_named(group: dist.ProcessGroup) -> None:
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    last = group.size() - 1
    is_last = group.rank() == last

    def call(
        config: ObjectiveConfig,
        progress: float,
        vocab_size: int = 1200,
        weighting: Weighting | None = None,
    ) -> None:
        hybrid_loss(
            problem.columns(problem.student, shard),
            problem.columns(problem.teacher, shard),
            problem.labels,
            HybridObjective(config, vocab_size, weighting),
            shard=shard,
            progress=progress,
            check_ranks=True,
        )

    with count_collectives({"gloo:all_gather": 7}):  # two for each comparison, one of statistics
        call(ObjectiveConfig(), 0.5)
    with pytest.raises(ValueError, match=r"^hybrid_loss: .* differ in progress \(0\.5 on rank"):
        call(ObjectiveConfig(), 0.25 if is_last else 0.5)
    with pytest.raises(ValueError, match=r"differ in weighting of the objective \(entropy on rank"):
        call(ObjectiveConfig(weighting="static" if is_last else "entropy"), 0.5)
    refused = "" if is_last else rf"refused on rank {last} \(hybrid_loss: "
    with pytest.raises(
        ValueError, match=f"^hybrid_loss: {refused}the objective is of a vocabulary"
    ):
        call(ObjectiveConfig(), 0.5, vocab_size=1201 if is_last else 1200)
    own = Weighting(
        Feature(0), lambda stats, _: torch.full_like(stats.student_lse, group.rank() / 8)
    )
    with pytest.raises(ValueError, match=r"^hybrid_loss: .* differ in the weights \("):
        call(ObjectiveConfig(), 0.5, weighting=own)


def checked_ranks_compute_the_same(group: dist.ProcessGroup) -> None:
    """The check adds collectives, and nothing else."""
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    student = problem.columns(problem.student, shard)
    features = Feature.LABEL
    plain = vocab_stats(student, None, problem.labels, shard=shard, features=features)
    with count_collectives({"gloo:all_gather": 3}):
        checked = vocab_stats(
            student, None, problem.labels, shard=shard, features=features, check_ranks=True
        )
    for name, value in computed(plain).items():
        assert value.equal(checked.require(name)), name


def traces_whole(group: dist.ProcessGroup) -> None:
    """torch.compile sees one graph, collective included; it leaves out the comparison of ranks."""
    problem = Problem.random(6, 30 * group.size())
    shard = VocabShard.even(problem.vocab_size, 30, group)
    objective = HybridObjective(ObjectiveConfig(), problem.vocab_size)
    teacher = problem.columns(problem.teacher, shard)

    def step(leaf: Tensor) -> Tensor:
        return hybrid_loss(
            leaf * 1.0, teacher, problem.labels, objective, shard=shard, check_ranks=True
        )[0].loss.sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = problem.columns(problem.student, shard).requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        one_collective_forward_none_backward,
        only_the_wanted_statistics_travel,
        bad_input_is_refused_before_any_collective,
        a_group_of_the_wrong_size_is_refused,
        a_group_of_others_is_refused,
        uneven_compares_the_vocabulary,
        uneven_refused_by_one_is_told_to_all,
        ranks_that_differ_are_named,
        objectives_that_differ_are_named,
        checked_ranks_compute_the_same,
    )
}
CASES |= {
    f"refused_by_one_rank_{name}": partial(what_one_rank_refuses_is_told_to_all, name=name)
    for name in REFUSED_BY_ONE
}
# The compiler alone takes seconds to import, on each rank.
SLOW_CASES: dict[str, Case] = {"traces_whole": traces_whole}
