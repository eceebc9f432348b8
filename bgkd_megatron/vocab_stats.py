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

from bgkd_megatron import ops
from bgkd_megatron.statistics import Feature, VocabStats

# torch 2.13 renamed it, and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class VocabShard:
    """Which token ids the local columns of the logits hold.

    vocab_size: real vocabulary, common to teacher and student; ids from there on are padding and
        are never read.
    start: global id of local column 0 (Megatron's vocab_start_index). num_columns: local columns of
        the student, with padding.
    tp_group: the ranks that hold the other columns; None when there are none.
    """

    vocab_size: int
    start: int
    num_columns: int
    tp_group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.start < 0 or self.num_columns < 0:
            raise ValueError(
                "VocabShard: vocab_size must be at least 1, start and num_columns at least 0, got "
                f"vocab_size={self.vocab_size}, start={self.start}, num_columns={self.num_columns}"
            )
        if self.tp_size == 1 and (self.start > 0 or self.num_columns < self.vocab_size):
            raise ValueError(
                f"VocabShard: one rank must hold all {self.vocab_size} token ids, got columns for "
                f"{self.num_columns} from id {self.start} on: give the tp_group of the others"
            )

    @property
    def tp_size(self) -> int:
        return 1 if self.tp_group is None else self.tp_group.size()

    @classmethod
    def even(
        cls, vocab_size: int, num_columns: int, tp_group: dist.ProcessGroup | None = None
    ) -> VocabShard:
        """Megatron's cut: every rank holds num_columns columns, rank r those from r * num_columns
        on. No communication.

        Raises ValueError if the columns of all ranks together are fewer than vocab_size.
        """
        rank, size = (0, 1) if tp_group is None else (tp_group.rank(), tp_group.size())
        _check_coverage(vocab_size, [num_columns] * size)
        return cls(vocab_size, rank * num_columns, num_columns, tp_group)

    @classmethod
    def uneven(cls, vocab_size: int, num_columns: int, tp_group: dist.ProcessGroup) -> VocabShard:
        """Any cut in rank order, each rank with its own num_columns. One all-gather of an integer:
        call it once, at set-up.

        Raises ValueError (on every rank) if the columns of all ranks together are fewer than
        vocab_size.
        """
        mine = torch.tensor([num_columns], dtype=torch.int64)
        if dist.get_backend(tp_group) == "nccl":
            mine = mine.cuda()
        widths = mine.new_empty(tp_group.size())
        _all_gather(widths, mine, group=tp_group)
        _check_coverage(vocab_size, widths.tolist())
        return cls(vocab_size, int(widths[: tp_group.rank()].sum()), num_columns, tp_group)


def _check_coverage(vocab_size: int, widths: list[int]) -> None:
    if sum(widths) < vocab_size:
        raise ValueError(
            f"VocabShard: the {len(widths)} rank(s) of the tp_group hold {widths} columns, "
            f"together fewer than the vocabulary of {vocab_size} token ids. Is this the group "
            f"that the output layer is sharded over?"
        )
    # Padding is a multiple of 128 (or 1024) columns per rank; twice the vocabulary is no padding.
    if sum(widths) - vocab_size >= max(vocab_size, 1024 * len(widths)):
        raise ValueError(
            f"VocabShard: the {len(widths)} rank(s) of the tp_group hold {widths} columns, at "
            f"least twice the vocabulary of {vocab_size} token ids. Is this group larger than the "
            f"one that the output layer is sharded over?"
        )


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
) -> VocabStats:
    """Global statistics of N tokens from local shards of logits; collective over shard.tp_group.

    student_logits: [N, V_local] float32, bfloat16 or float16; any row stride, unit stride along the
        vocabulary. The only argument with a gradient.
    teacher_logits: [N, V_local'] of the same dtype, over the same token ids (padding behind the
        last real id may differ), or None without `Feature.TEACHER`.
    labels: [N] int64 global token ids, or ignore_index: such rows are never read, all their
        statistics and gradients are 0.
    features: the statistics wanted; they alone are communicated. temperature > 0 belongs to
        SOFTENED, power_exponent > 0 to POWER_SUM.
    inplace_backward: the gradient overwrites the student's logits, no logits-sized memory is
        allocated (except under torch.compile, which allocates a gradient all the same). The logits
        must not be a leaf, and nobody may read them after the backward.

    Returns VocabStats: [N] float32 each, bitwise equal on all ranks of the group.
    Bytes: forward reads each shard once; backward reads each once and writes d logits. One
    all-gather of 4 * len(ops.stat_names(features)) * N bytes per rank in forward, none in backward.
    Raises TypeError (dtype) or ValueError (shape, device, label outside the vocabulary, shard,
    temperature, leaf), before any communication.
    """
    _check_arguments(student_logits, teacher_logits, labels, shard, inplace_backward)
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
    owner = student_logits if student_logits._base is None else student_logits._base
    if inplace_backward and owner.requires_grad and owner.is_leaf:
        raise ValueError(
            "vocab_stats: inplace_backward would overwrite student_logits, which are a leaf tensor "
            "or a view of one (a parameter or an input of yours). Pass inplace_backward=False, or "
            "the output of a layer."
        )


def _rows_overlap(logits: Tensor) -> bool:
    return logits.dim() == 2 and logits.shape[0] > 1 and 0 <= logits.stride(0) < logits.shape[1]
