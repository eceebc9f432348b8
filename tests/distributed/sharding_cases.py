"""Cuts of the vocabulary, tokens and logits for which every world size must equal one rank."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from launch import Case
from sharded_problem import Problem, assert_equals_one_rank, assert_near
from vocab_inputs import (
    computed,
)

from bgkd_megatron.vocab_shard import VocabShard

# ---- cuts of the vocabulary


def even_shards(group: dist.ProcessGroup) -> None:
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    assert_equals_one_rank(Problem.random(9, 1200), shard)


def even_shards_bf16(group: dist.ProcessGroup) -> None:
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    assert_equals_one_rank(Problem.random(9, 1200, torch.bfloat16), shard)


def vocabulary_not_divisible(group: dist.ProcessGroup) -> None:
    """Megatron pads it: the last rank's last columns hold no token.  The teacher has more."""
    shard = VocabShard.even(1009, -(-1009 // group.size()), group)
    is_last = group.rank() == group.size() - 1
    assert_equals_one_rank(Problem.random(9, 1009), shard, teacher_padding=5 if is_last else 0)


def a_rank_with_padding_only(group: dist.ProcessGroup) -> None:
    """E.g. 40 tokens over 4 ranks of 20 columns: the last two ranks hold none."""
    vocab_size = 20 * group.size() - 20 - 3
    assert_equals_one_rank(Problem.random(5, vocab_size), VocabShard.even(vocab_size, 20, group))


def uneven_shards(group: dist.ProcessGroup) -> None:
    width = [3, 700, 5, 41][group.rank()]
    vocab_size = sum([3, 700, 5, 41][: group.size()])
    assert_equals_one_rank(
        Problem.random(9, vocab_size), VocabShard.uneven(vocab_size, width, group)
    )


def a_rank_without_columns(group: dist.ProcessGroup) -> None:
    width = 0 if group.rank() == 0 else 100
    vocab_size = 100 * (group.size() - 1)
    assert_equals_one_rank(
        Problem.random(5, vocab_size), VocabShard.uneven(vocab_size, width, group)
    )


def one_column_each(group: dist.ProcessGroup) -> None:
    assert_equals_one_rank(Problem.random(5, group.size()), VocabShard.even(group.size(), 1, group))


# ---- tokens


def no_tokens(group: dist.ProcessGroup) -> None:
    shard = VocabShard.even(40, 40, group)
    stats, gradient = Problem.random(0, 40).solve(shard)
    assert stats.student_lse.shape == (0,)
    assert gradient.shape == (0, 40)


def all_tokens_ignored(group: dist.ProcessGroup) -> None:
    problem = Problem.random(5, 40)
    problem = Problem(problem.student, problem.teacher, torch.full((5,), -100))
    stats, gradient = problem.solve(VocabShard.even(40, -(-40 // group.size()), group))
    assert all(value.eq(0).all() for value in computed(stats).values())
    assert gradient.eq(0).all()


# ---- numbers


def equal_maxima_on_several_ranks(group: dist.ProcessGroup) -> None:
    """The lowest id wins, and the student's logit there is taken."""
    problem = Problem.random(3, 12 * group.size())
    problem.teacher[0, [5, 17]] = 50.0  # ranks 0 and 1
    problem.teacher[1] = 1.0  # everywhere
    problem.teacher[2, [13, 12 * group.size() - 1]] = 50.0  # second and last rank
    problem.student[0, [3, 4, 18]] = 60.0
    shard = VocabShard.even(problem.vocab_size, 12, group)
    labels = torch.tensor([17, 0, 13])
    stats, _ = Problem(problem.student, problem.teacher, labels).solve(shard)
    assert stats.require("teacher_argmax").tolist() == [5, 0, 13]
    assert stats.student_argmax[0].item() == 3
    at_argmax = problem.student[range(3), [5, 0, 13]] - problem.student.logsumexp(dim=-1)
    name = "student_logprob_at_teacher_argmax"
    assert_near(stats.require(name), at_argmax, name)
    assert_equals_one_rank(Problem(problem.student, problem.teacher, labels), shard)


def a_rank_whose_tokens_are_excluded(group: dist.ProcessGroup) -> None:
    problem = Problem.random(6, 30 * group.size())
    problem.student[:, :30] = problem.teacher[:, :30] = -math.inf
    labels = torch.full((6,), 35)
    assert_equals_one_rank(
        Problem(problem.student, problem.teacher, labels),
        VocabShard.even(problem.vocab_size, 30, group),
    )


def shards_far_apart(group: dist.ProcessGroup) -> None:
    """The merge rescales by e^-200 and less."""
    problem = Problem.random(6, 30 * group.size())
    height = 200.0 * torch.arange(group.size()).repeat_interleave(30)
    assert_equals_one_rank(
        Problem(problem.student + height, problem.teacher + height, problem.labels),
        VocabShard.even(problem.vocab_size, 30, group),
    )


def equal_student_and_teacher(group: dist.ProcessGroup) -> None:
    problem = Problem.random(6, 30 * group.size())
    problem = Problem(problem.student, problem.student.clone(), problem.labels)
    stats, _ = problem.solve(VocabShard.even(problem.vocab_size, 30, group))
    for name in ("forward_kl", "reverse_kl", "soft_forward_kl", "soft_reverse_kl"):
        assert stats.require(name).eq(0).all(), name


def same_bits_on_repetition(group: dist.ProcessGroup) -> None:
    problem = Problem.random(9, 4099)
    shard = VocabShard.even(4099, -(-4099 // group.size()), group)
    stats, gradient = problem.solve(shard)
    for _ in range(3):
        again, gradient_again = problem.solve(shard)
        assert gradient_again.equal(gradient)
        assert all(value.equal(again.require(name)) for name, value in computed(stats).items())


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        even_shards,
        even_shards_bf16,
        vocabulary_not_divisible,
        a_rank_with_padding_only,
        uneven_shards,
        a_rank_without_columns,
        one_column_each,
        no_tokens,
        all_tokens_ignored,
        equal_maxima_on_several_ranks,
        a_rank_whose_tokens_are_excluded,
        shards_far_apart,
        equal_student_and_teacher,
        same_bits_on_repetition,
    )
}
