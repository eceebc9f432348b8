"""What the ranks tell each other: one collective, nothing superfluous, nothing after a refusal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from launch import Case
from sharded_problem import Problem
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import ProfilerActivity, profile

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_stats import VocabShard, vocab_stats


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


def traces_whole(group: dist.ProcessGroup) -> None:
    """torch.compile sees one graph, collective included."""
    problem = Problem.random(6, 30 * group.size())
    shard = VocabShard.even(problem.vocab_size, 30, group)
    objective = HybridObjective(ObjectiveConfig(), problem.vocab_size)
    teacher = problem.columns(problem.teacher, shard)

    def step(leaf: Tensor) -> Tensor:
        return hybrid_loss(leaf * 1.0, teacher, problem.labels, objective, shard=shard)[
            0
        ].loss.sum()

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
    )
}
# The compiler alone takes seconds to import, on each rank.
SLOW_CASES: dict[str, Case] = {"traces_whole": traces_whole}
