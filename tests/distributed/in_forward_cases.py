"""The gradient in forward, on chunks of tokens, under tensor parallelism."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from communication_cases import count_collectives
from launch import Case
from objective_cases import ONE_SWEEP
from sharded_problem import Problem
from torch import Tensor
from vocab_inputs import computed

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_shard import VocabShard

PROGRESS = 0.1


# Tokens of a chunk, and how many chunks that makes of 9.
SIZES = ((None, 1), (1, 9), (4, 3), (9, 1), (100, 1))


def gradient_in_forward(
    group: dist.ProcessGroup,
    vocab_size: int,
    dtype: torch.dtype,
    config: ObjectiveConfig | None = None,
    sizes: tuple[tuple[int | None, int], ...] = SIZES,
) -> None:
    """For every size of the chunks the losses and gradients of the gradient in backward."""
    problem = Problem.random(9, vocab_size, dtype)
    shard = VocabShard.even(vocab_size, -(-vocab_size // group.size()), group)
    objective = HybridObjective(config or ObjectiveConfig(), vocab_size)
    assert objective.named(PROGRESS) is not None
    # Exact, so that it is the same to multiply by it before or after large terms cancel.
    scale = torch.tensor([0.0, *(2.0**k for k in range(-6, 2))])

    def solve(**options: Any) -> tuple[list[Tensor], Tensor]:
        leaf = problem.columns(problem.student, shard).requires_grad_()
        losses, stats = hybrid_loss(
            leaf * 1.0,
            problem.columns(problem.teacher, shard) if objective.config.needs_teacher else None,
            problem.labels,
            objective,
            shard=shard,
            progress=PROGRESS,
            **options,
        )
        (gradient,) = torch.autograd.grad(losses.loss @ scale, leaf)
        return [*losses, *computed(stats).values()], gradient

    values, gradient = solve()
    rtol = max(2 * torch.finfo(dtype).eps, 1e-5)
    for tokens, chunks in sizes:
        with count_collectives({"gloo:all_gather": chunks}):
            same, same_gradient = solve(gradient_in_forward=True, tokens_per_chunk=tokens)
        torch.testing.assert_close(same, [v.detach() for v in values], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(same_gradient, gradient, rtol=rtol, atol=1e-6)
    solve(gradient_in_forward=True, tokens_per_chunk=4, check_ranks=True)


def named_objectives(group: dist.ProcessGroup) -> None:
    """Every soft term and every weighting."""
    for config in ONE_SWEEP[::4]:
        gradient_in_forward(group, 165, torch.float32, config, sizes=((4, 3),))


def ranks_that_take_different_ways_are_named(group: dist.ProcessGroup) -> None:
    """And a refusal of one rank is told to all, whichever way they take."""
    problem = Problem.random(9, 1200)
    shard = VocabShard.even(1200, 1200 // group.size(), group)
    is_first = group.rank() == 0

    def call(in_forward: bool, progress: float) -> None:
        hybrid_loss(
            problem.columns(problem.student, shard).requires_grad_() * 1.0,
            problem.columns(problem.teacher, shard),
            problem.labels,
            HybridObjective(ObjectiveConfig(), 1200),
            shard=shard,
            progress=progress,
            gradient_in_forward=in_forward,
            check_ranks=True,
        )

    with pytest.raises(ValueError, match=r"differ in gradient_in_forward, as possible \(True on"):
        call(is_first, 0.5)
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        call(True, 0.5 if is_first else 1.5)


CASES: dict[str, Case] = {
    "ranks_that_take_different_ways_are_named": ranks_that_take_different_ways_are_named,
    "named_objectives": named_objectives,
    "gradient_in_forward": partial(gradient_in_forward, vocab_size=1200, dtype=torch.float32),
    "gradient_in_forward_padded": partial(
        gradient_in_forward, vocab_size=1009, dtype=torch.bfloat16
    ),
}
