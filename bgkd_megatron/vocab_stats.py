"""Differentiable statistics of vocabulary-parallel logits: one kernel, one all-gather, one merge.

forward   vocab_stats, one read of both shards; ONE all-gather of [rows, N] float32 over the TP
          group; merge_stats in rank order
backward  vocab_stats_backward, one read of both shards, d logits in place if wanted; no
          communication

All ranks merge the same numbers in the same order: the statistics are bitwise equal on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron import ops, rank_check, vocab_arguments
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_arguments import StatsArguments, StatsOptions
from bgkd_megatron.vocab_shard import VocabShard

__all__ = [
    "all_gather",
    "gathered",
    "local_stats",
    "merged",
    "merged_stats",
    "named",
    "vocab_stats",
    "written_gradient",
]

# torch 2.13 renamed it, and warns of the old name.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def vocab_stats(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    shard: VocabShard,
    features: Feature,
    temperature: float = 1.0,
    power_exponent: float = 1.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    check_ranks: bool = False,
) -> VocabStats:
    """Global statistics of N tokens from local shards of logits; collective over shard.tp_group.

    student_logits: [N, V_local] float32, bfloat16 or float16; any row stride, unit stride along the
        vocabulary. The only argument with a gradient.
    teacher_logits: [N, V_local'] of the same dtype, over the same token ids (padding behind the
        last real id may differ), or None without `Feature.TEACHER`.
    labels: [N] int64 global token ids, or ignore_index: such rows are never read, all their
        statistics and gradients are 0. A label outside the vocabulary is refused on the CPU; on
        CUDA, where finding it would make the host wait, the statistics at it are NaN.
    features: the statistics wanted; they alone are communicated. temperature > 0 belongs to
        SOFTENED, power_exponent > 0 to POWER_SUM. Softened KLs shrink like 1 / temperature^2, their
        rounding error of about 1e-6 does not: see ObjectiveConfig.temperature.
    inplace_backward: the gradient overwrites the student's logits, no logits-sized memory is
        allocated (except under torch.compile, which allocates a gradient all the same). The logits
        must not be a leaf, nobody may read them after the backward, and the teacher's must lie
        elsewhere.
    check_ranks: compare what the ranks of the group pass before they exchange anything else: rows,
        dtype, labels, shard, features, temperature, power_exponent, ignore_index. Ranks that
        differ, or of which one refuses its arguments, abort, wait for each other or get wrong
        numbers, and notice it only so. To find a fault, on all ranks at once: it costs two
        collectives and waits for the device. Not under torch.compile. The gradient that comes back
        to the statistics must be the same on all ranks, too; that is not compared.

    Returns VocabStats: [N] float32 each, bitwise equal on all ranks of the group.
    Bytes: forward reads each shard once; backward reads each once and writes d logits. One
    all-gather of 4 * len(ops.stat_names(features)) * N bytes per rank in forward, none in backward.
    Raises TypeError (dtype) or ValueError (shape, device, label, shard, temperature, leaf), before
    any communication. With check_ranks then all ranks raise: ValueError where the arguments were
    good.
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
    partial = rank_check.agreed(
        "vocab_stats",
        lambda: local_stats(arguments),
        lambda _: vocab_arguments.facts(arguments),
        shard.tp_group if check_ranks else None,
    )
    return merged_stats(partial, arguments)


def local_stats(arguments: StatsArguments) -> Tensor:
    """Partial statistics of this rank's columns, [rows, N] float32. No communication.

    Raises what `vocab_stats` raises.
    """
    vocab_arguments.check(arguments)
    student_logits, teacher_logits, labels, options = arguments
    return ops.vocab_stats(
        student_logits.detach(),
        teacher_logits,
        labels,
        options.shard.vocab_size,
        options.shard.start,
        *options.of_merge,
    )


def merged_stats(partial: Tensor, arguments: StatsArguments) -> VocabStats:
    """Global statistics from `local_stats` of the same arguments: the one all-gather."""
    return named(_GlobalStats.apply(partial, *arguments), arguments)


def gathered(local: Tensor, shard: VocabShard) -> Tensor:
    """[tp_size, *local.shape] in rank order: one all-gather over the group, on one rank none."""
    size = shard.tp_size
    if size == 1:
        return local.view(1, *local.shape)
    everyone = local.new_empty((size * local.shape[0], *local.shape[1:]))
    all_gather(everyone, local, group=shard.tp_group)
    return everyone.view(size, *local.shape)


def merged(partial: Tensor, labels: Tensor | None, options: StatsOptions) -> Tensor:
    """Global statistics [rows, N] float32, the rows of `ops.stat_names`. No autograd."""
    return ops.merge_stats(gathered(partial, options.shard), labels, *options.of_merge)


def named(global_stats: Tensor, arguments: StatsArguments) -> VocabStats:
    """The rows of `merged` by name."""
    _, _, labels, options = arguments
    features = Feature(options.features)
    row = dict(zip(ops.stat_names(features), global_stats.unbind(0), strict=True))
    constant = {name: value.detach() for name, value in row.items()}
    has_teacher = bool(features & Feature.TEACHER)
    if labels is None:
        valid = torch.ones_like(constant["student_max"], dtype=torch.bool)
    else:
        valid = labels != options.ignore_index
    return VocabStats(
        valid=valid,
        student_lse=constant["student_max"] + row["student_sum"],
        student_argmax=constant["student_argmax"].to(torch.int64),
        student_entropy=row.get("student_entropy"),
        student_label_logprob=row.get("student_at_label"),
        teacher_lse=constant["teacher_max"] + constant["teacher_sum"] if has_teacher else None,
        teacher_argmax=constant["teacher_argmax"].to(torch.int64) if has_teacher else None,
        teacher_max_logprob=-constant["teacher_sum"] if has_teacher else None,
        student_logprob_at_teacher_argmax=row.get("student_at_teacher_argmax"),
        teacher_entropy=constant.get("teacher_entropy"),
        teacher_label_logprob=constant.get("teacher_at_label"),
        forward_kl=row.get("forward_kl"),
        reverse_kl=row.get("reverse_kl"),
        teacher_power_sum=constant.get("teacher_power_sum"),
        soft_forward_kl=row.get("soft_forward_kl"),
        soft_reverse_kl=row.get("soft_reverse_kl"),
    )


class _GlobalStats(torch.autograd.Function):
    """Partial statistics of this rank -> global statistics [rows, N] float32, the rows of
    `ops.stat_names(features)`. The gradient goes to the student's logits that they come from."""

    @staticmethod
    def forward(
        ctx: Any,
        partial: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor | None,
        options: StatsOptions,
    ) -> Tensor:
        global_stats = merged(partial, labels, options)
        ctx.save_for_backward(student_logits, teacher_logits, labels, global_stats)
        ctx.options = options
        return global_stats

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None, None, None]:
        student_logits, teacher_logits, labels, global_stats = ctx.saved_tensors
        options: StatsOptions = ctx.options
        tensors = (global_stats, upstream.contiguous())
        rest = (teacher_logits, labels, *options.of_gradient)
        grad = written_gradient(
            student_logits,
            options,
            lambda logits: ops.vocab_stats_backward(*tensors, logits, *rest),
            lambda logits: ops.vocab_stats_backward_(logits, *tensors, *rest),
        )
        return None, grad, None, None, None


def written_gradient(
    student_logits: Tensor,
    options: StatsOptions,
    of: Callable[[Tensor], Tensor],
    write_over: Callable[[Tensor], None],
) -> Tensor:
    """For a backward: the gradient `of` these logits, or what `write_over` makes of them if it is
    wanted in place."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            "vocab_stats has no second derivative: call backward() without create_graph=True"
        )
    if not options.inplace_backward or torch.compiler.is_compiling():
        return of(student_logits)
    grad = student_logits.detach()
    write_over(grad)
    # Anyone else who saved these logits for a backward of their own must hear of it instead of
    # reading gradients.
    torch.autograd.graph.increment_version(student_logits)
    return grad
