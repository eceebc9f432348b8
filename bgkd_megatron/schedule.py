"""A microbatch, and Megatron's schedules over the microbatches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

__all__ = ["ForwardStep", "Microbatch", "run_schedule"]


class Microbatch(NamedTuple):
    """One microbatch of this data-parallel rank, on its device, [b, s] each; with context
    parallelism this rank's two pieces of the sequences."""

    tokens: Tensor
    """int64"""
    labels: Tensor
    """int64, the next tokens; `IGNORE_INDEX` where the loss is masked"""
    position_ids: Tensor
    """int64"""
    document_ends: Tensor | None = None
    """bool, where the next position belongs to another document; None: a sequence is one"""


ForwardStep = Callable[[Iterator[Microbatch], Any], tuple[Tensor, Callable[..., Any]]]
"""(microbatches, a piece of the model) -> output, and what the last stage makes of it: a
`forward_step_func` of Megatron."""


def run_schedule(
    forward_step: ForwardStep,
    model: Sequence[Any],
    batches: Sequence[Microbatch],
    *,
    forward_only: bool,
    collect_outputs: bool = False,
) -> list[Any]:
    """Run `batches` through `model`, the pieces of this rank, in the schedule of its layout.

    Returns what the last stage made of each microbatch, in order; nothing on other stages.
    collect_outputs: it is no loss.  Collective.
    """
    tokens = batches[0].tokens
    iterators = [iter(batches) for _ in model]
    reports: list[Any] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(model) > 1 else iterators[0],
        model=list(model) if len(model) > 1 else model[0],
        num_microbatches=len(batches),
        # Of the whole sequence: the schedule divides it by the ranks that share it.
        seq_length=tokens.shape[1] * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=tokens.shape[0],
        forward_only=forward_only,
        collect_non_loss_data=collect_outputs,
    )
    return reports
