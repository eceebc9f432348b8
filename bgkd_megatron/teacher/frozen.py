"""A frozen teacher on the student's own ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from bgkd_megatron.final_logits import NO_CHANGE, FinalLogits
from bgkd_megatron.ranges import named_range
from bgkd_megatron.schedule import Microbatch, run_schedule
from bgkd_megatron.teacher.states import TeacherStates

__all__ = ["FrozenTeacher"]


class FrozenTeacher:
    """A GPTModel in eval mode whose parameters never change and never see a graph.

    model: its pieces on this rank, built on the current process groups; depth, width and the number
        of layers on a stage are its own.
    microbatches_ahead, offload: as in `TeacherConfig`.
    """

    def __init__(
        self,
        model: Sequence[GPTModel],
        *,
        final_logits: FinalLogits = NO_CHANGE,
        microbatches_ahead: int | None = None,
        offload: bool = False,
    ) -> None:
        self._final_logits = final_logits
        self._model = [piece.eval().requires_grad_(False) for piece in model]
        self._microbatches_ahead = microbatches_ahead
        self._offload = offload
        self._is_pipeline = parallel_state.get_pipeline_model_parallel_world_size() > 1
        last = self._model[-1]
        self._output_weight: Tensor | None = None
        if last.post_process:
            tied = last.share_embeddings_and_output_weights
            self._output_weight = (
                last.shared_embedding_or_output_weight() if tied else last.output_layer.weight
            )

    def groups(self, batches: Sequence[Microbatch]) -> list[Sequence[Microbatch]]:
        """Without a pipeline one group: the states of a microbatch are made when they are asked
        for, and no others are held."""
        size = self._microbatches_ahead if self._is_pipeline else None
        size = size or len(batches)
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def states(self, batches: Sequence[Microbatch]) -> Iterator[TeacherStates]:
        """Last hidden states and output weight.  In a pipeline all of them are made now, before the
        student's schedule needs the stages for itself."""
        if not self._is_pipeline:
            return (self._alone(batch) for batch in batches)
        with torch.no_grad():
            hidden = run_schedule(
                self._forward_step, self._model, batches, forward_only=True, collect_outputs=True
            )
        return self._in_turn(hidden)

    def _in_turn(self, hidden: list[Tensor]) -> Iterator[TeacherStates]:
        hidden.reverse()
        while hidden:  # what has been used is held no longer
            yield self._with_weight(hidden.pop())

    @torch.no_grad()
    def _alone(self, batch: Microbatch) -> TeacherStates:
        hidden, _ = self._forward_step(iter([batch]), self._model[0])
        return self._with_weight(hidden)

    def _forward_step(self, batches: Iterator[Microbatch], piece: GPTModel) -> tuple[Tensor, Any]:
        batch = next(batches)
        with named_range("teacher"):
            hidden: Tensor = piece(
                batch.tokens, batch.position_ids, attention_mask=None, output_processor=_take_hidden
            )
        return hidden, partial(_keep, offload=self._offload)

    def _with_weight(self, hidden: Tensor) -> TeacherStates:
        assert self._output_weight is not None
        return TeacherStates(hidden, self._output_weight, self._final_logits)


def _take_hidden(*, hidden_states: Tensor, output_layer: Any, **_: Any) -> Tensor:
    """Megatron's output_processor hook: leave before the output layer is applied."""
    if output_layer.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states)
    return hidden_states


def _keep(hidden: Tensor, *, non_loss_data: bool, offload: bool) -> Tensor:
    return hidden.to("cpu", non_blocking=True) if offload else hidden
