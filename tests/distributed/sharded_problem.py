"""A problem whose vocabulary is cut over the ranks, compared with its solution on one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from vocab_inputs import (
    ALL_FEATURES,
    computed,
    contract,
    gradient_noise,
    make_labels,
    make_logits,
    upstream,
)

from bgkd_megatron.statistics import VocabStats
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

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
