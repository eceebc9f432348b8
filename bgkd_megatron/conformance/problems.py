"""The inputs.  All ranks make the same numbers on the whole vocabulary and cut their columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["COST_PROBLEM", "PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """One set of inputs, on the whole vocabulary; the same on every rank."""

    student: Tensor
    """[N, V] logits, columns of padding included."""
    teacher: Tensor
    labels: Tensor
    """[N] global ids; where a token is masked, some id."""
    valid: Tensor
    """[N] bool; False where a token is masked."""
    upstream: Tensor
    """[N] float64: gradient of the losses, when there is one per token."""
    vocab_size: int
    """Real token ids."""
    is_uneven: bool = False
    """Whether every rank has more columns than the one before."""

    @property
    def num_columns(self) -> int:
        return self.student.shape[1]

    @property
    def has_padding(self) -> bool:
        return self.vocab_size < self.num_columns

    def columns(self, rank: int, tp_size: int) -> slice:
        power = 2 if self.is_uneven else 1
        start, stop = (self.num_columns * r**power // tp_size**power for r in (rank, rank + 1))
        return slice(start, stop)

    def widths(self, tp_size: int) -> tuple[int, ...]:
        """Columns of each rank."""
        shards = (self.columns(rank, tp_size) for rank in range(tp_size))
        return tuple(shard.stop - shard.start for shard in shards)


def _normal(num_tokens: int, num_columns: int, vocab_size: int, seed: int) -> Problem:
    """Student and teacher resemble each other, as in training, and each row has outliers: with
    nothing but noise all probabilities were nearly 0."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(num_tokens, num_columns, generator=generator)

    common = 2.0 * noise()
    outliers = torch.randint(vocab_size, (num_tokens, 4), generator=generator)
    common.scatter_(1, outliers, 6.0 + 2.0 * torch.rand(num_tokens, 4, generator=generator))
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    # First and last id of every shard of 4 or fewer; every other label is a likely token.
    edges = torch.arange(8) // 2 * (num_columns // 4) + torch.arange(8) % 2 * (num_columns // 4 - 1)
    labels[:8] = edges.clamp(max=vocab_size - 1)
    labels[8::2] = outliers[8::2, 0]
    return Problem(
        student=common + noise(),
        teacher=common + noise(),
        labels=labels,
        valid=torch.ones(num_tokens, dtype=torch.bool),
        upstream=0.5 + torch.rand(num_tokens, generator=generator).double(),
        vocab_size=vocab_size,
    )


def _plain() -> Problem:
    return _normal(24, 512, 512, seed=1)


def _masked() -> Problem:
    problem = _normal(24, 512, 512, seed=2)
    valid = torch.arange(24) % 3 != 1
    return replace(problem, valid=valid)


def _offset() -> Problem:
    """exp of a logit overflows or underflows where no maximum was subtracted."""
    problem = _normal(24, 512, 512, seed=3)
    offset = torch.where(torch.arange(24) % 2 == 0, 200.0, -200.0)[:, None]
    return replace(problem, student=problem.student + offset, teacher=problem.teacher - offset)


def _peaked() -> Problem:
    """A teacher that is sure of one token, which the student deems likely in half of the rows; the
    probabilities of the others underflow in float32."""
    problem = _normal(24, 512, 512, seed=4)
    teacher, student = problem.teacher.clone(), problem.student.clone()
    rows = torch.arange(24)
    teacher[rows, problem.labels] += 120.0
    student[rows[::2], problem.labels[::2]] += 8.0
    return replace(problem, teacher=teacher, student=student)


def _padded() -> Problem:
    """The last shard has columns that no token has, with likely logits in them."""
    problem = _normal(24, 512, 477, seed=5)
    student, teacher = problem.student.clone(), problem.teacher.clone()
    student[:, 477:] += 5.0
    teacher[:, 477:] += 5.0
    return replace(problem, student=student, teacher=teacher)


def _uneven() -> Problem:
    return replace(_normal(24, 512, 512, seed=7), is_uneven=True)


def _wide() -> Problem:
    """bfloat16, and so many columns that what is per logit outweighs what is per token.

    The teacher's 128 likeliest tokens have different logits also in bfloat16: which of several
    equal ones is among the top k is not defined.
    """
    problem = _normal(16, 16384, 16384, seed=6)
    teacher = problem.teacher.clamp(max=7.5)
    distinct = 8.0 + torch.arange(128).flip(0) / 16.0
    teacher.scatter_(1, teacher.topk(128).indices, distinct.expand(16, 128))
    return replace(problem, student=problem.student.bfloat16(), teacher=teacher.bfloat16())


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "plain": _plain,
    "masked": _masked,
    "offset": _offset,
    "peaked": _peaked,
    "padded": _padded,
    "uneven": _uneven,
    "bf16": _wide,
}
COST_PROBLEM = "bf16"
"""Bytes are counted on this one."""
