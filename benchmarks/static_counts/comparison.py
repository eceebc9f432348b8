"""Bytes and instructions of each loss for one position of the vocabulary: a student logit and, in
distillation, its teacher logit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch.distributed as dist

from static_counts.kernels import KernelCount, Pass, of_triton
from static_counts.losses import LOSSES, NUM_TOKENS, Inputs, Loss, Place
from static_counts.ours import OurKernels
from static_counts.trace import OurOperation, TorchOperation, Trace, recording

TENSOR_PARALLEL = 8
"""ranks"""


@dataclass
class Row:
    loss: str
    subject: str
    num_columns: int
    """of the logits on one rank"""
    kernels: list[KernelCount] = field(default_factory=list)
    torch_operations: list[tuple[str, float]] = field(default_factory=list)
    """names, bytes for each position"""
    reason: str = ""
    """why there are no counts"""

    @property
    def passes(self) -> list[Pass]:
        return [part for kernel in self.kernels for part in kernel.passes]

    @property
    def kernel_bytes(self) -> float:
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def torch_bytes(self) -> float:
        return sum(count for _, count in self.torch_operations)

    @property
    def loop_instructions(self) -> float:
        """Of a position in the middle of a row."""
        return sum(part.loop.instructions / part.columns for part in self.passes)

    @property
    def row_instructions(self) -> float:
        """The same, on average over a row with its end."""
        return sum(part.instructions_of_row for part in self.passes) / self.num_columns

    @property
    def exponentials(self) -> float:
        return sum(part.loop.exponentials / part.columns for part in self.passes)


def compare(vocab_size: int, capability: int, losses: Iterable[Loss] = LOSSES) -> list[Row]:
    """One row for each loss. What cannot be counted here says why."""
    losses, ours = list(losses), OurKernels(capability)
    is_parallel = any(loss.tensor_parallel for loss in losses)
    with _group_of_many() if is_parallel else nullcontext() as group:
        return [
            _counted(loss, _place(loss, vocab_size, capability, group), ours) for loss in losses
        ]


def _place(loss: Loss, vocab_size: int, capability: int, group: dist.ProcessGroup | None) -> Place:
    if not loss.tensor_parallel:
        return Place(vocab_size, vocab_size, capability, None)
    if vocab_size % TENSOR_PARALLEL:
        raise ValueError(
            f"vocab_size must be a multiple of the {TENSOR_PARALLEL} ranks of the tensor-parallel "
            f"losses, got {vocab_size}"
        )
    return Place(vocab_size, vocab_size // TENSOR_PARALLEL, capability, group)


def _counted(loss: Loss, place: Place, ours: OurKernels) -> Row:
    row = Row(loss.title, loss.subject, place.num_columns)
    try:
        step = loss.prepare(place)
        inputs = Inputs.make(place.num_columns)
        with recording(place.capability) as trace:
            step(inputs)
        _count_steps(row, trace, ours)
    # Another version of a package may fail in any way; the other rows still stand.
    except Exception as error:
        row.kernels, row.torch_operations = [], []
        row.reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def _count_steps(row: Row, trace: Trace, ours: OurKernels) -> None:
    positions = NUM_TOKENS * row.num_columns
    for step in trace.steps:
        if isinstance(step, OurOperation):
            row.kernels += ours.of(step, row.num_columns)
        elif step.largest_tensor < positions:
            continue  # of a few numbers for each token
        elif isinstance(step, TorchOperation):
            row.torch_operations.append((step.name, step.bytes / positions))
        else:
            row.kernels.append(of_triton(step, row.num_columns))


@contextmanager
def _group_of_many() -> Iterator[dist.ProcessGroup | None]:
    """The first of TENSOR_PARALLEL ranks, of which there is only this one: collectives return
    without a result. What is counted does not depend on values."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=TENSOR_PARALLEL, store=FakeStore())
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
