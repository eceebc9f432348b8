"""The divergences of the second sweep: every world size must equal one rank, with one more
collective."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.distributed as dist
from communication_cases import count_collectives
from fdiv_checks import DIVERGENCES, name_of
from launch import Case
from sharded_problem import Problem, assert_near, equal_on_all_ranks
from torch import Tensor
from vocab_inputs import gradient_noise

from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard


def solve(
    problem: Problem, shard: VocabShard, divergence: FDivergence, *, inplace_backward: bool = False
) -> tuple[VocabStats, Tensor, Tensor]:
    """Statistics, divergence, and the gradient of the local logits through divergence and hard
    term."""
    leaf = problem.columns(problem.student, shard).requires_grad_()
    stats, value = vocab_fdiv(
        leaf.clone(),
        problem.columns(problem.teacher, shard),
        problem.labels,
        shard=shard,
        divergence=divergence,
        features=Feature.TEACHER | Feature.LABEL,
        inplace_backward=inplace_backward,
    )
    loss = 0.6 * value - 0.4 * stats.require("student_label_logprob")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return stats, value.detach(), gradient


def assert_equals_one_rank(problem: Problem, shard: VocabShard, divergence: FDivergence) -> None:
    """Values, the shard's part of the gradient, in place or not, and the same bits on all ranks."""
    whole = VocabShard.even(problem.vocab_size, problem.vocab_size)
    _, expected, expected_gradient = solve(problem, whole, divergence)
    stats, value, gradient = solve(problem, shard, divergence)
    again = solve(problem, shard, divergence, inplace_backward=True)
    same_bits = equal_on_all_ranks(stats._replace(student_lse=value), shard.tp_group)
    # From here on no rank waits for another: each can fail alone.
    assert same_bits
    assert again[1].equal(value)
    assert again[2].equal(gradient)
    assert_near(value, expected, name_of(divergence))
    tokens = slice(shard.start, shard.start + shard.num_columns)
    rounding = torch.finfo(gradient.dtype).eps * expected_gradient.abs()
    noise = torch.zeros_like(expected_gradient, dtype=torch.float64)
    rows = stats.valid
    noise[rows] = gradient_noise(problem.student[rows], problem.teacher[rows], 1.0)
    allowed = (noise + rounding)[:, tokens]
    real = allowed.shape[1]
    error = (gradient[:, :real] - expected_gradient[:, tokens]).abs()
    assert (error <= allowed).all(), f"gradient is off by {error.amax():.3g}"
    assert gradient[:, real:].eq(0).all(), "gradient of padded columns"


def vocabulary_not_divisible(group: dist.ProcessGroup, divergence: FDivergence) -> None:
    shard = VocabShard.even(1009, -(-1009 // group.size()), group)
    assert_equals_one_rank(Problem.random(9, 1009), shard, divergence)


def uneven_bf16_shards_one_excluded(group: dist.ProcessGroup) -> None:
    """The first rank holds three columns, of tokens that the teacher excludes."""
    width = [3, 700, 5, 41][group.rank()]
    vocab_size = sum([3, 700, 5, 41][: group.size()])
    problem = Problem.random(9, vocab_size, torch.bfloat16)
    problem.teacher[:, :3] = -math.inf
    shard = VocabShard.uneven(vocab_size, width, group)
    assert_equals_one_rank(problem, shard, FDivergence(FKind.SKEW_REVERSE, 0.3))


def a_rank_without_columns_no_tokens(group: dist.ProcessGroup) -> None:
    width = 0 if group.rank() == 0 else 100
    shard = VocabShard.uneven(100 * (group.size() - 1), width, group)
    for num_tokens in (5, 0):
        problem = Problem.random(num_tokens, shard.vocab_size)
        assert_equals_one_rank(problem, shard, FDivergence(FKind.JENSEN_SHANNON, 0.3))


def one_collective_a_sweep_none_backward(group: dist.ProcessGroup) -> None:
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    leaf = problem.columns(problem.student, shard).requires_grad_()
    with count_collectives({"gloo:all_gather": 2}):
        stats, value = vocab_fdiv(
            leaf.clone(),
            problem.columns(problem.teacher, shard),
            problem.labels,
            shard=shard,
            divergence=DIVERGENCES[0],
            features=Feature.TEACHER | Feature.LABEL,
            inplace_backward=True,
        )
    with count_collectives({}):
        (value - stats.require("student_label_logprob")).sum().backward()
    assert leaf.grad is not None


def bad_input_is_refused_before_any_collective(group: dist.ProcessGroup) -> None:
    problem = Problem.random(3, 40)
    shard = VocabShard.even(40, -(-40 // group.size()), group)
    bad = Problem(problem.student, problem.teacher, torch.tensor([0, 1, 40]))
    message = r"labels\[2\] = 40 is outside the vocabulary of 40"
    with count_collectives({}), pytest.raises(ValueError, match=message):
        solve(bad, shard, DIVERGENCES[0])


def divergences_that_differ_are_named(group: dist.ProcessGroup) -> None:
    problem = Problem.random(3, 40)
    shard = VocabShard.even(40, -(-40 // group.size()), group)
    lam = 0.25 if group.rank() == group.size() - 1 else 0.5
    with pytest.raises(ValueError, match=r"^vocab_fdiv: .* differ in divergence \(.*lam=0\.25"):
        vocab_fdiv(
            problem.columns(problem.student, shard),
            problem.columns(problem.teacher, shard),
            shard=shard,
            divergence=FDivergence(FKind.JENSEN_SHANNON, lam),
            check_ranks=True,
        )


CASES: dict[str, Case] = {
    f"fdiv_{name_of(divergence)}": functools.partial(
        vocabulary_not_divisible, divergence=divergence
    )
    for divergence in DIVERGENCES
}
CASES |= {
    f"fdiv_{case.__name__}": case
    for case in (
        uneven_bf16_shards_one_excluded,
        a_rank_without_columns_no_tokens,
        one_collective_a_sweep_none_backward,
        bad_input_is_refused_before_any_collective,
        divergences_that_differ_are_named,
    )
}
