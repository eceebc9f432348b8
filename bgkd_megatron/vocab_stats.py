"""Differentiable statistics of vocabulary-parallel logits: one kernel, one all-gather, one merge.

forward   vocab_stats, one read of both shards; ONE all-gather of [rows, N] float32 over the TP
          group; merge_stats in rank order
backward  vocab_stats_backward, one read of both shards, d logits in place if wanted; no
          communication

All ranks merge the same numbers in the same order: the statistics are bitwise equal on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron import ops, rank_check
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_shard import VocabShard

__all__ = ["VocabShard", "vocab_stats"]

# torch 2.13 renamed it, and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class _StatsOptions:
    """What autograd carries from forward to backward besides tensors."""

    shard: VocabShard
    features: int
    temperature: float
    power_exponent: float
    ignore_index: int
    inplace_backward: bool


class _GlobalStats(torch.autograd.Function):
    """Student logits -> global statistics [rows, N] float32, the rows of
    `ops.stat_names(features)`."""

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor |
    None,
                options: _StatsOptions) -> Tensor:  # fmt: skip
        shard = options.shard
        scalars = (
            options.features,
            options.temperature,
            options.power_exponent,
            options.ignore_index,
        )
        partial = ops.vocab_stats(
            student_logits, teacher_logits, labels, shard.vocab_size, shard.start, *scalars
        )
        gathered = partial
        if shard.tp_size > 1:
            gathered = partial.new_empty((shard.tp_size * partial.shape[0], partial.shape[1]))
            _all_gather(gathered, partial, group=shard.tp_group)
        gathered = gathered.view(shard.tp_size, *partial.shape)
        global_stats = ops.merge_stats(gathered, labels, *scalars)
        ctx.save_for_backward(student_logits, teacher_logits, labels, global_stats)
        ctx.options = options
        return global_stats

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "vocab_stats has no second derivative: call backward() without create_graph=True"
            )
        student_logits, teacher_logits, labels, global_stats = ctx.saved_tensors
        options: _StatsOptions = ctx.options
        shard = options.shard
        scalars = (
            shard.vocab_size,
            shard.start,
            options.features,
            options.temperature,
            options.ignore_index,
        )
        upstream = upstream.contiguous()
        if not options.inplace_backward or torch.compiler.is_compiling():
            grad = ops.vocab_stats_backward(
                global_stats, upstream, student_logits, teacher_logits, labels, *scalars
            )
            return grad, None, None, None
        grad = student_logits.detach()
        ops.vocab_stats_backward_(grad, global_stats, upstream, teacher_logits, labels, *scalars)
        # Anyone else who saved these logits for a backward of their own must hear of it instead of
        # reading gradients.
        torch.autograd.graph.increment_version(student_logits)
        return grad, None, None, None


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
        statistics and gradients are 0.
    features: the statistics wanted; they alone are communicated. temperature > 0 belongs to
        SOFTENED, power_exponent > 0 to POWER_SUM. Softened KLs shrink like 1 / temperature^2, their
        rounding error of about 1e-6 does not: see ObjectiveConfig.temperature.
    inplace_backward: the gradient overwrites the student's logits, no logits-sized memory is
        allocated (except under torch.compile, which allocates a gradient all the same). The logits
        must not be a leaf, nobody may read them after the backward, and the teacher's must lie
        elsewhere.
    check_ranks: compare what the ranks of the group pass, before anything is computed: rows,
        labels, shard, features, temperature, power_exponent, ignore_index. Ranks that differ abort,
        wait for each other or get wrong numbers, and notice it only so. To find a fault, on all
        ranks at once: it costs two collectives and waits for the device. Not under torch.compile.
        The gradient that comes back to the statistics must be the same on all ranks, too; that is
        not compared.

    Returns VocabStats: [N] float32 each, bitwise equal on all ranks of the group.
    Bytes: forward reads each shard once; backward reads each once and writes d logits. One
    all-gather of 4 * len(ops.stat_names(features)) * N bytes per rank in forward, none in backward.
    Raises TypeError (dtype) or ValueError (shape, device, label outside the vocabulary, shard,
    temperature, leaf), before any communication; with check_ranks ValueError on all ranks.
    """
    _check_arguments(student_logits, teacher_logits, labels, shard, inplace_backward)
    if check_ranks and not torch.compiler.is_compiling():
        rank_check.require_same(
            "vocab_stats",
            {
                "vocab_size": shard.vocab_size,
                "widths": shard.widths,
                "rows of student_logits": list(student_logits.shape[:-1]),
                "rows of teacher_logits": None
                if teacher_logits is None
                else list(teacher_logits.shape[:-1]),
                "labels": rank_check.digest(labels),
                "features": int(features),
                "temperature": temperature,
                "power_exponent": power_exponent,
                "ignore_index": ignore_index,
            },
            shard.tp_group,
        )
    options = _StatsOptions(
        shard,
        int(features),
        float(temperature),
        float(power_exponent),
        ignore_index,
        inplace_backward,
    )
    global_stats = _GlobalStats.apply(student_logits, teacher_logits, labels, options)
    row = dict(zip(ops.stat_names(features), global_stats.unbind(0), strict=True))
    constant = {name: value.detach() for name, value in row.items()}
    has_teacher = bool(features & Feature.TEACHER)
    if labels is None:
        valid = torch.ones_like(constant["student_max"], dtype=torch.bool)
    else:
        valid = labels != ignore_index
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


def _check_arguments(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    shard: VocabShard,
    inplace_backward: bool,
) -> None:
    if student_logits.device.type not in ops.DEVICES:
        raise ValueError(
            f"vocab_stats: student_logits are on {student_logits.device}, this build has kernels "
            f"for {', '.join(ops.DEVICES)}: move the logits"
        )
    if student_logits.dim() == 2 and student_logits.shape[1] != shard.num_columns:
        raise ValueError(
            f"vocab_stats: the shard describes {shard.num_columns} local columns, student_logits "
            f"have shape {tuple(student_logits.shape)}"
        )
    # A meta tensor among them would send the call to the fake kernels, which compute nothing.
    for name, other in (("teacher_logits", teacher_logits), ("labels", labels)):
        if other is not None and other.device != student_logits.device:
            raise ValueError(
                f"vocab_stats: {name} must be on {student_logits.device} like student_logits, "
                f"got {other.device}"
            )
    if teacher_logits is not None and teacher_logits.requires_grad:
        raise ValueError(
            "vocab_stats: teacher_logits require a gradient, but the teacher is a constant here. "
            "Compute them under torch.no_grad() or detach() them."
        )
    if inplace_backward and _rows_overlap(student_logits):
        raise ValueError(
            "vocab_stats: inplace_backward would write one row over another: student_logits of "
            f"shape {tuple(student_logits.shape)} have strides {student_logits.stride()}"
        )
    # Under torch.compile the gradient has memory of its own, and memory no address.
    if (
        inplace_backward
        and teacher_logits is not None
        and not torch.compiler.is_compiling()
        and _share_memory(student_logits, teacher_logits)
    ):
        raise ValueError(
            "vocab_stats: inplace_backward would overwrite teacher_logits, which lie in the memory "
            "of student_logits. Pass inplace_backward=False, or a copy."
        )
    owner = student_logits if student_logits._base is None else student_logits._base
    if inplace_backward and owner.requires_grad and owner.is_leaf:
        raise ValueError(
            "vocab_stats: inplace_backward would overwrite student_logits, which are a leaf tensor "
            "or a view of one (a parameter or an input of yours). Pass inplace_backward=False, or "
            "the output of a layer."
        )


def _rows_overlap(logits: Tensor) -> bool:
    return logits.dim() == 2 and logits.shape[0] > 1 and 0 <= logits.stride(0) < logits.shape[1]


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the addresses from the first to the last element overlap."""
    (a_begin, a_end), (b_begin, b_end) = _addresses(a), _addresses(b)
    return max(a_begin, b_begin) < min(a_end, b_end)


def _addresses(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()
