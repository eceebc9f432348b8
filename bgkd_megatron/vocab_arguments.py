"""The arguments of vocab_stats: what a rank refuses, and what all ranks must pass alike.

The operators themselves (csrc/torch/checks.cpp) refuse wrong dtypes, shapes, strides and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgkd_megatron import ops, rank_check
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_shard import VocabShard

__all__ = ["StatsArguments", "StatsOptions", "check", "facts"]


@dataclass(frozen=True)
class StatsOptions:
    """What autograd carries from forward to backward besides tensors."""

    shard: VocabShard
    features: int
    temperature: float
    power_exponent: float
    ignore_index: int
    inplace_backward: bool

    def __post_init__(self) -> None:
        if not isinstance(self.shard, VocabShard):
            raise TypeError(f"shard must be a VocabShard, got {type(self.shard).__name__}")

    @property
    def of_merge(self) -> tuple[int, float, float, int]:
        """As the operators that merge take them, after the labels."""
        return self.features, self.temperature, self.power_exponent, self.ignore_index

    @property
    def of_gradient(self) -> tuple[int, int, int, float, int]:
        """As the operators of the gradient take them, after the labels."""
        shard = self.shard
        return shard.vocab_size, shard.start, self.features, self.temperature, self.ignore_index


class StatsArguments(NamedTuple):
    """As described at `vocab_stats`."""

    student_logits: Tensor
    teacher_logits: Tensor | None
    labels: Tensor | None
    options: StatsOptions


def facts(arguments: StatsArguments) -> dict[str, object]:
    """What must be the same on all ranks of the group, by name.

    Of arguments that were not refused: their teacher has the student's rows and dtype.
    """
    options = arguments.options
    return {
        "vocab_size": options.shard.vocab_size,
        "widths": options.shard.widths,
        "rows of student_logits": arguments.student_logits.shape[0],
        "dtype of student_logits": arguments.student_logits.dtype,
        "labels": rank_check.digest(arguments.labels),
        "features": Feature(options.features).name,
        "temperature": options.temperature,
        "power_exponent": options.power_exponent,
        "ignore_index": options.ignore_index,
    }


def check(arguments: StatsArguments) -> None:
    """Raises ValueError for what the operators cannot see, or would take for something else."""
    student_logits, teacher_logits, labels, options = arguments
    if student_logits.device.type not in ops.DEVICES:
        raise ValueError(
            f"vocab_stats: student_logits are on {student_logits.device}, this build has kernels "
            f"for {', '.join(ops.DEVICES)}: move the logits"
        )
    num_columns = options.shard.num_columns
    if student_logits.dim() == 2 and student_logits.shape[1] != num_columns:
        raise ValueError(
            f"vocab_stats: the shard describes {num_columns} local columns, student_logits "
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
    if options.inplace_backward:
        _check_inplace(student_logits, teacher_logits)


def check_whole(arguments: StatsArguments) -> None:
    """Raises ValueError for another number of rows, and on the CPU for a label outside the
    vocabulary: what the operators would not see, or too late, when each gets some rows only."""
    student_logits, teacher_logits, labels, options = arguments
    for name, other in (("teacher_logits", teacher_logits), ("labels", labels)):
        if other is not None and other.shape[:1] != student_logits.shape[:1]:
            raise ValueError(
                f"vocab_stats: {name} must have the student's {student_logits.shape[0]} rows, got "
                f"shape {list(other.shape)}"
            )
    if labels is None or labels.device.type != "cpu":
        return
    outside = (labels < 0) | (labels >= options.shard.vocab_size)
    wrong = labels[outside & (labels != options.ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"vocab_stats: label {wrong[0].item()} is outside the vocabulary of "
            f"{options.shard.vocab_size} token ids and is not ignore_index "
            f"({options.ignore_index})"
        )


def _check_inplace(student_logits: Tensor, teacher_logits: Tensor | None) -> None:
    """Whether the gradient may overwrite the student's logits."""
    if _rows_overlap(student_logits):
        raise ValueError(
            "vocab_stats: inplace_backward would write one row over another: student_logits of "
            f"shape {tuple(student_logits.shape)} have strides {student_logits.stride()}"
        )
    # Under torch.compile the gradient has memory of its own, and memory no address.
    if (
        teacher_logits is not None
        and not torch.compiler.is_compiling()
        and _share_memory(student_logits, teacher_logits)
    ):
        raise ValueError(
            "vocab_stats: inplace_backward would overwrite teacher_logits, which lie in the memory "
            "of student_logits. Pass inplace_backward=False, or a copy."
        )
    owner = student_logits if student_logits._base is None else student_logits._base
    if owner.requires_grad and owner.is_leaf:
        raise ValueError(
            "vocab_stats: inplace_backward would overwrite student_logits, which are a leaf tensor "
            "or a view of one (a parameter or an input of yours). Pass inplace_backward=False, or "
            "the output of a layer."
        )


def _rows_overlap(logits: Tensor) -> bool:
    return logits.dim() == 2 and logits.shape[0] > 1 and 0 <= logits.stride(0) < logits.shape[1]


class _Rows(NamedTuple):
    """Where the rows of logits [N, V] lie, in bytes."""

    begin: int
    end: int
    stride: int
    width: int

    @classmethod
    def of(cls, logits: Tensor) -> _Rows:
        size, (num_rows, num_columns) = logits.element_size(), logits.shape
        begin, stride, width = logits.data_ptr(), logits.stride(0) * size, num_columns * size
        return cls(begin, begin + (num_rows - 1) * stride + width, stride, width)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether a row of `a` overlaps a row of `b`."""
    if a.dim() != 2 or b.dim() != 2 or a.numel() == 0 or b.numel() == 0:
        return False  # of other shapes the operators refuse
    rows_a, rows_b = _Rows.of(a), _Rows.of(b)
    if max(rows_a.begin, rows_b.begin) >= min(rows_a.end, rows_b.end):
        return False
    # Modulo the stride all rows of one tensor begin at one place, so those of two tensors may take
    # turns, as the halves of one [N, 2V] buffer do.  Strides that differ have their divisor common.
    period = math.gcd(rows_a.stride, rows_b.stride)
    if period == 0:
        return True
    offset = (rows_b.begin - rows_a.begin) % period
    return offset < rows_a.width or offset + rows_b.width > period
