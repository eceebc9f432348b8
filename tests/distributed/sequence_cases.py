"""Sequences cut over a context-parallel group, vocabularies over a tensor-parallel one.

The risk-guided loss couples neighbours, which context parallelism puts on different ranks: every
cut must equal the whole sequences on one rank, and the definition in float64.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from launch import Case
from torch import Tensor
from vocab_inputs import make_logits

from bgkd_megatron import reference
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, TokenLosses
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.vocab_shard import VocabShard

BATCH, LENGTH, VOCAB = 4, 16, 45
# With four ranks a piece has two positions: these documents end at, before and behind its border.
ENDS = [(0, 1), (0, 6), (0, 7), (1, 3), (1, 12), (2, 0), (2, 14)]
# Gaps: inside a piece, over a border, a whole document, the pieces 1 and 6 (of rank 1 of 4).
MASKED = [(0, slice(3, 5)), (0, slice(10, 11)), (1, slice(4, 13)), (2, slice(1, 4))]
MASKED += [(sequence, cut) for sequence in range(4) for cut in (slice(2, 4), slice(12, 14))]


@dataclass(frozen=True)
class Batch:
    """[b, s, ...] of whole sequences, or of the part of them that a rank has."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    ends: Tensor

    @classmethod
    def random(cls, is_packed: bool, is_masked: bool) -> Batch:
        z, t = (make_logits(BATCH * LENGTH, VOCAB, seed).view(BATCH, LENGTH, -1) for seed in (0, 1))
        generator = torch.Generator().manual_seed(2)
        labels = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
        ends = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
        for sequence, position in ENDS if is_packed else []:
            ends[sequence, position] = True
        for sequence, cut in MASKED if is_masked else []:
            labels[sequence, cut] = -100
            z[sequence, cut] = torch.nan
        return cls(z, t, labels, ends)

    def part(self, sequences: slice, rank: int, size: int) -> Batch:
        """Of some sequences the two pieces of this rank: Megatron's zigzag."""
        positions = torch.arange(LENGTH).view(2 * size, -1)[[rank, 2 * size - 1 - rank]].flatten()
        return Batch(
            *(x[sequences][:, positions] for x in (self.student, self.teacher, self.labels)),
            self.ends[sequences][:, positions],
        )

    def documents(self) -> Tensor:
        starts = self.ends.roll(1, dims=1)
        starts[:, 0] = True
        return starts.flatten().cumsum(0)


def flat(rows: Tensor, batch_first: bool) -> Tensor:
    """[b, s, ...] -> [N, ...]"""
    return (rows if batch_first else rows.transpose(0, 1)).flatten(0, 1)


def unflat(rows: Tensor, like: Tensor, batch_first: bool) -> Tensor:
    """[N, ...] -> [b, s, ...]"""
    b, s = like.shape[:2]
    shape = (b, s) if batch_first else (s, b)
    rows = rows.view(*shape, *rows.shape[1:])
    return rows if batch_first else rows.transpose(0, 1)


def solve(
    batch: Batch,
    config: ObjectiveConfig,
    *,
    batch_first: bool = True,
    tp_group: dist.ProcessGroup | None = None,
    cp_group: dist.ProcessGroup | None = None,
) -> tuple[TokenLosses, Tensor]:
    """Losses [b, s] and the gradient of the sum of the losses of all ranks, [b, s, columns]."""
    size = 1 if tp_group is None else tp_group.size()
    shard = VocabShard.even(VOCAB, -(-VOCAB // size), tp_group)
    columns = slice(shard.start, shard.start + shard.num_columns)

    def local(logits: Tensor) -> Tensor:
        own = flat(logits, batch_first)[:, columns]
        padding = own.new_full((len(own), shard.num_columns - own.shape[1]), torch.nan)
        return torch.cat((own, padding), dim=1)

    leaf = local(batch.student).requires_grad_()
    losses, _ = hybrid_loss(
        leaf * 1.0,
        local(batch.teacher),
        flat(batch.labels, batch_first),
        HybridObjective(config, VOCAB),
        shard=shard,
        sequences=SequenceLayout(
            sequence_length=batch.labels.shape[1],
            batch_size=batch.labels.shape[0],
            batch_first=batch_first,
            cp_group=cp_group,
            ends=flat(batch.ends, batch_first) if batch.ends.any() or cp_group else None,
        ),
    )
    losses.loss.sum().backward()
    assert leaf.grad is not None
    values = (unflat(value.detach(), batch.labels, batch_first) for value in losses)
    real = leaf.grad[:, : max(min(VOCAB - shard.start, shard.num_columns), 0)]
    return TokenLosses(*values), unflat(real, batch.labels, batch_first)


def assert_same(
    actual: tuple[TokenLosses, Tensor], expected: tuple[TokenLosses, Tensor], tolerance: float
) -> None:
    pairs = zip(TokenLosses._fields, actual[0], expected[0], strict=True)
    for name, value, exact in (*pairs, ("gradient", actual[1], expected[1])):
        torch.testing.assert_close(
            value.double(), exact.double(), rtol=tolerance, atol=tolerance, msg=name
        )


def by_definition(batch: Batch, config: ObjectiveConfig) -> tuple[TokenLosses, Tensor]:
    z = batch.student.flatten(0, 1).double().requires_grad_()
    losses = reference.hybrid_loss(
        z,
        batch.teacher.flatten(0, 1).double(),
        batch.labels.flatten(),
        config,
        vocab_size=VOCAB,
        documents=batch.documents(),
    )
    (gradient,) = torch.autograd.grad(losses.loss.sum(), z)
    whole = (unflat(value.detach(), batch.labels, True) for value in losses)
    return TokenLosses(*whole), gradient.view_as(batch.student)


def restricted(
    whole: tuple[TokenLosses, Tensor], batch: Batch, rank: int, size: int, columns: slice
) -> tuple[TokenLosses, Tensor]:
    """Values and gradient of the whole, as one rank has them."""

    def cut(values: Tensor) -> Tensor:
        return replace(batch, student=values).part(slice(None), rank, size).student

    losses, gradient = whole
    return TokenLosses(*(cut(value) for value in losses)), cut(gradient[..., columns])


CONFIGS = {
    "paper": ObjectiveConfig(hard="risk_guided", risk_alpha=0.3),
    "discounted": ObjectiveConfig(hard="risk_guided", risk_gamma=0.9, risk_terminal=2.0),
    "two_sweeps": ObjectiveConfig(
        hard="risk_guided", soft="jensen_shannon", risk_gamma=0.9, hard_label="teacher_argmax"
    ),
}


def cut_over(
    tp_group: dist.ProcessGroup | None, cp_group: dist.ProcessGroup, config: ObjectiveConfig
) -> None:
    rank, size = cp_group.rank(), cp_group.size()
    width = VOCAB if tp_group is None else -(-VOCAB // tp_group.size())
    start = 0 if tp_group is None else tp_group.rank() * width
    wrong = []
    for is_packed, is_masked, batch_first in itertools.product([False, True], repeat=3):
        batch = Batch.random(is_packed, is_masked)
        own = batch.part(slice(None), rank, size)
        actual = solve(own, config, batch_first=batch_first, tp_group=tp_group, cp_group=cp_group)
        one_rank, exact = solve(batch, config), by_definition(batch, config)
        for whole, tolerance in ((one_rank, 1e-5), (exact, 2e-5)):
            expected = restricted(whole, batch, rank, size, slice(start, start + width))
            try:
                assert_same(actual, expected, tolerance)
            except AssertionError as error:
                wrong.append(f"{is_packed=} {is_masked=} {batch_first=}: {error}")
    assert not wrong, wrong


def context_parallel(group: dist.ProcessGroup, config: ObjectiveConfig) -> None:
    cut_over(None, group, config)


def grid(group: dist.ProcessGroup) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Of four ranks the row and the column of a 2 x 2 grid that this one is in."""
    rows, columns = [[0, 1], [2, 3]], [[0, 2], [1, 3]]
    row, _ = dist.new_subgroups_by_enumeration(rows)
    column, _ = dist.new_subgroups_by_enumeration(columns)
    return row, column


def tensor_and_context_parallel(group: dist.ProcessGroup, config: ObjectiveConfig) -> None:
    tp_group, cp_group = grid(group)
    cut_over(tp_group, cp_group, config)


def the_cut_of_a_global_batch_does_not_matter(group: dist.ProcessGroup) -> None:
    """DP x CP x micro-batches: the gradient of a parameter, sums divided by all valid tokens."""
    config, batch = CONFIGS["discounted"], Batch.random(is_packed=True, is_masked=True)
    parameter = 1 + 0.1 * torch.arange(VOCAB)
    count = (batch.labels != -100).sum()

    def gradient(own: Batch, cp_group: dist.ProcessGroup | None) -> Tensor:
        z, t = own.student, own.teacher
        _, of_logits = solve(
            replace(own, student=z * parameter, teacher=t), config, cp_group=cp_group
        )
        valid = own.labels != -100
        return (of_logits * z)[valid].sum(dim=0) / count  # a scale of each column

    expected = gradient(batch, None)
    row, column = grid(group) if group.size() == 4 else (None, None)
    grids = [(group.size(), None), (1, group)]  # data-parallel ranks, the context-parallel group
    grids += [(2, column)] if column is not None else []
    errors = []
    for (dp_size, cp_group), microbatches in itertools.product(grids, (1, 2, 4)):
        if dp_size * microbatches > BATCH:
            continue
        dp_rank = 0 if dp_size == 1 else (row or group).rank() if cp_group else group.rank()
        size = BATCH // (dp_size * microbatches)
        total = torch.zeros(VOCAB)
        for i in range(microbatches):
            start = (dp_rank * microbatches + i) * size
            rank, ranks = (0, 1) if cp_group is None else (cp_group.rank(), cp_group.size())
            total += gradient(batch.part(slice(start, start + size), rank, ranks), cp_group)
        dist.all_reduce(total, group=group)
        errors.append((total - expected).abs().amax() / expected.abs().amax())
    assert max(errors) < 1e-5, errors


def an_odd_part_is_refused(group: dist.ProcessGroup) -> None:
    with pytest.raises(ValueError, match=r"two pieces of a sequence: .* must be even, got 7"):
        SequenceLayout(7, 2, cp_group=group)


CASES: dict[str, Case] = {
    f"context_parallel_{name}": partial(context_parallel, config=config)
    for name, config in CONFIGS.items()
}
CASES |= {
    case.__name__: case
    for case in (
        the_cut_of_a_global_batch_does_not_matter,
        an_odd_part_is_refused,
    )
}
CASES_OF_FOUR: dict[str, Case] = {
    f"tensor_and_context_parallel_{name}": partial(tensor_and_context_parallel, config=config)
    for name, config in CONFIGS.items()
}
