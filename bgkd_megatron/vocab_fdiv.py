"""A divergence of a second sweep over vocabulary-parallel logits, with the statistics of the first.

forward   vocab_stats, its all-gather and merge; then vocab_fdiv, a second read of both shards, and
          an all-gather of [2, N] float32 over the TP group, added in rank order
backward  vocab_fdiv_backward: the gradient of the divergence and of all statistics from one read of
          both shards, d logits in place if wanted; no communication

All ranks add the same numbers in the same order: statistics and divergence are bitwise equal on
every rank. One backward for both, because the logits may be gone after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bgkd_megatron import ops, rank_check, vocab_arguments
from bgkd_megatron.fdivergence import FDivergence
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_arguments import StatsArguments, StatsOptions
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import gathered, local_stats, merged, named, written_gradient

__all__ = ["check", "merged_stats_and_fdiv", "vocab_fdiv"]


def vocab_fdiv(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    shard: VocabShard,
    divergence: FDivergence,
    features: Feature = Feature.TEACHER,
    temperature: float = 1.0,
    power_exponent: float = 1.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    check_ranks: bool = False,
) -> tuple[VocabStats, Tensor]:
    """Global statistics of N tokens, and the divergence [N] float32 between their distributions;
    collective over shard.tp_group.

    Arguments as in `vocab_stats`, with a teacher; check_ranks compares the divergence, too. The
    temperature belongs to the softened statistics, not to the divergence.

    Everything in the result that `vocab_stats` describes as differentiable is so, in any mixture
    with the divergence. Only one backward may be run with inplace_backward: take the loss of both
    first. A row that is not valid has divergence 0.
    Bytes: as `vocab_stats`, and one more read of each shard in forward; there a second all-gather,
    of 8 * N bytes per rank.
    Raises as `vocab_stats`, and TypeError for what is no FDivergence; before any communication.
    """
    options = StatsOptions(
        shard,
        int(features),
        float(temperature),
        float(power_exponent),
        ignore_index,
        inplace_backward,
    )
    arguments = StatsArguments(student_logits, teacher_logits, labels, options)

    def local() -> Tensor:
        check(arguments, divergence)
        return local_stats(arguments)

    partial = rank_check.agreed(
        "vocab_fdiv",
        local,
        lambda _: {"divergence": divergence} | vocab_arguments.facts(arguments),
        shard.tp_group if check_ranks else None,
    )
    return merged_stats_and_fdiv(partial, arguments, divergence)


def check(arguments: StatsArguments, divergence: FDivergence) -> None:
    """Refuses what `local_stats` does not look at."""
    if not isinstance(divergence, FDivergence):
        raise TypeError(
            f"vocab_fdiv: divergence must be an FDivergence, got {type(divergence).__name__}"
        )
    if arguments.teacher_logits is None or not arguments.options.features & Feature.TEACHER:
        raise ValueError(
            "vocab_fdiv: a divergence needs teacher_logits and Feature.TEACHER among the features, "
            f"got teacher_logits of type {type(arguments.teacher_logits).__name__} and "
            f"{Feature(arguments.options.features)!r}"
        )


def merged_stats_and_fdiv(
    partial: Tensor, arguments: StatsArguments, divergence: FDivergence
) -> tuple[VocabStats, Tensor]:
    """Global statistics from `local_stats` of the same arguments, and the divergence: two
    all-gathers."""
    global_stats, value = _StatsAndFdiv.apply(partial, *arguments, divergence)
    return named(global_stats, arguments), value


class _StatsAndFdiv(torch.autograd.Function):
    """Partial statistics of this rank -> global statistics [rows, N], divergence [N]. The gradient
    of both goes to the student's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        partial: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None,
        options: StatsOptions,
        divergence: FDivergence,
    ) -> tuple[Tensor, Tensor]:
        global_stats = merged(partial, labels, options)
        sums_of_ranks = gathered(
            ops.vocab_fdiv(
                student_logits,
                teacher_logits,
                labels,
                global_stats,
                options.shard.vocab_size,
                options.shard.start,
                options.features,
                *_scalars(divergence),
                options.ignore_index,
            ),
            options.shard,
        )
        sums = sums_of_ranks[0]
        for sums_of_rank in sums_of_ranks[1:]:
            sums = sums + sums_of_rank
        ctx.save_for_backward(student_logits, teacher_logits, labels, global_stats, sums)
        ctx.options, ctx.divergence = options, divergence
        return global_stats, sums[0].clone()

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor, upstream_divergence: Tensor
    ) -> tuple[None, Tensor, None, None, None, None]:
        student_logits, teacher_logits, labels, global_stats, sums = ctx.saved_tensors
        options: StatsOptions = ctx.options
        tensors = (global_stats, upstream.contiguous(), sums, upstream_divergence.contiguous())
        rest = (
            teacher_logits,
            labels,
            options.shard.vocab_size,
            options.shard.start,
            options.features,
            options.temperature,
            *_scalars(ctx.divergence),
            options.ignore_index,
        )
        grad = written_gradient(
            student_logits,
            options,
            lambda logits: ops.vocab_fdiv_backward(*tensors, logits, *rest),
            lambda logits: ops.vocab_fdiv_backward_(logits, *tensors, *rest),
        )
        return None, grad, None, None, None, None


def _scalars(divergence: FDivergence) -> tuple[int, float, float, float]:
    """kind, lam, alpha and beta, as the operators take them."""
    d = divergence
    return int(d.kind), d.lam or 0.0, d.alpha or 0.0, d.beta or 0.0
