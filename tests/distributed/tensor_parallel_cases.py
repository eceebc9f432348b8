"""What must hold when the vocabulary is cut over the ranks of a group.

Run by test_tensor_parallel.py, on every rank of 2, 3 and 4 processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from launch import Case
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import ProfilerActivity, profile
from vocab_inputs import (
    ALL_FEATURES,
    computed,
    contract,
    gradient_noise,
    make_labels,
    make_logits,
    upstream,
)

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_stats import VocabShard, vocab_stats

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Problem:
    """The same logits on all ranks [N, V], of which each computes with its columns."""

    student: Tensor
    teacher: Tensor
    labels: Tensor

    @classmethod
    def random(
        cls, num_tokens: int, vocab_size: int, dtype: torch.dtype = torch.float32
    ) -> Problem:
        return cls(
            make_logits(num_tokens, vocab_size, seed=0, dtype=dtype),
            make_logits(num_tokens, vocab_size, seed=1, dtype=dtype),
            make_labels(num_tokens, vocab_size, seed=2),
        )

    @property
    def vocab_size(self) -> int:
        return self.student.shape[1]

    def columns(self, logits: Tensor, shard: VocabShard, padding: int = 0) -> Tensor:
        """The shard's columns of `logits`; NaN where it holds no token, and in `padding` more."""
        real = logits[:, shard.start : shard.start + shard.num_columns]
        missing = shard.num_columns - real.shape[1] + padding
        return torch.cat([real, real.new_full((len(real), missing), math.nan)], dim=1)

    def solve(
        self, shard: VocabShard, *, teacher_padding: int = 0, inplace_backward: bool = False
    ) -> tuple[VocabStats, Tensor]:
        """Statistics, and the gradient of the local logits through all of them."""
        leaf = self.columns(self.student, shard).requires_grad_()
        stats = vocab_stats(
            leaf.clone(),
            self.columns(self.teacher, shard, teacher_padding),
            self.labels,
            shard=shard,
            features=ALL_FEATURES,
            temperature=TEMPERATURE,
            power_exponent=0.3,
            inplace_backward=inplace_backward,
        )
        (gradient,) = torch.autograd.grad(contract(stats, upstream(stats, seed=3)), leaf)
        return stats, gradient


def assert_near(actual: Tensor, expected: Tensor, name: str) -> None:
    """The order of float32 sums depends on the cut."""
    torch.testing.assert_close(
        actual, expected, rtol=5e-6, atol=5e-6, msg=lambda text: f"{name}: {text}"
    )


def assert_equals_one_rank(problem: Problem, shard: VocabShard, teacher_padding: int = 0) -> None:
    """Values, the shard's part of the gradient, and the same bits on all ranks."""
    whole = VocabShard.even(problem.vocab_size, problem.vocab_size)
    expected, expected_gradient = problem.solve(whole)
    stats, gradient = problem.solve(
        shard, teacher_padding=teacher_padding, inplace_backward=teacher_padding > 0
    )
    same_bits = equal_on_all_ranks(stats, shard.tp_group)
    # From here on no rank waits for another: each can fail alone.
    assert same_bits
    for name, value in computed(stats).items():
        assert_near(value, expected.require(name), name)
    tokens = slice(shard.start, shard.start + shard.num_columns)
    rows = stats.valid
    noise = torch.zeros_like(expected_gradient, dtype=torch.float64)
    noise[rows] = gradient_noise(problem.student[rows], problem.teacher[rows], TEMPERATURE)
    rounding = torch.finfo(gradient.dtype).eps * expected_gradient.abs()
    allowed = (noise + rounding)[:, tokens]
    real = allowed.shape[1]
    error = (gradient[:, :real] - expected_gradient[:, tokens]).abs()
    assert (error <= allowed).all(), f"gradient is off by {error.amax():.3g}"
    assert gradient[:, real:].eq(0).all(), "gradient of padded columns"


def equal_on_all_ranks(stats: VocabStats, group: dist.ProcessGroup | None) -> bool:
    """Bit for bit."""
    bits = torch.stack([value.detach().to(torch.float64) for value in computed(stats).values()])
    gathered = [torch.empty_like(bits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, bits, group=group)
    return all(other.equal(bits) for other in gathered)


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


# ---- communication


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
    """12 float32 at most for the default objective: the traffic that the design allows."""
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


def a_group_that_is_too_small_is_refused(group: dist.ProcessGroup) -> None:
    """The output layer is cut over more ranks than the group given."""
    for cut in (VocabShard.even, VocabShard.uneven):
        with pytest.raises(ValueError, match="columns, together fewer than the vocabulary"):
            cut(10 * group.size() + 1, 10, group)


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
        one_collective_forward_none_backward,
        only_the_wanted_statistics_travel,
        bad_input_is_refused_before_any_collective,
        a_group_that_is_too_small_is_refused,
    )
}
# The compiler alone takes seconds to import, on each rank.
SLOW_CASES: dict[str, Case] = {"traces_whole": traces_whole}
