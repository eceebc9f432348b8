"""A frozen teacher on the student's own ranks."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from bgkd_megatron.teacher.states import TeacherStates

__all__ = ["FrozenTeacher"]


class FrozenTeacher:
    """A GPTModel in eval mode whose parameters never change and never see a graph.

    model: built on the current process groups, with the student's tensor-parallel size.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, tokens: Tensor, position_ids: Tensor) -> TeacherStates:
        """Last hidden states and output weight for `tokens`; both [b, s] int64."""
        states: TeacherStates = self._model(
            tokens, position_ids, attention_mask=None, output_processor=_take_states
        )
        return states


def _take_states(
    *, hidden_states: Tensor, output_layer: Any, output_weight: Tensor | None, **_: Any
) -> TeacherStates:
    """Megatron's output_processor hook: leave before the output layer is applied."""
    if output_layer.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states)
    # output_weight is the embedding when the two are tied, else None.
    weight = output_layer.weight if output_weight is None else output_weight
    return TeacherStates(hidden_states, weight)
