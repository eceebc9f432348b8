"""What the loss asks of a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import linear

from bgkd_megatron.final_logits import NO_CHANGE, FinalLogits
from bgkd_megatron.schedule import Microbatch

__all__ = ["Teacher", "TeacherStates"]


class TeacherStates(NamedTuple):
    """The teacher's view of one microbatch, enough to build its logits.

    Hidden states are 30 to 70 times smaller than the logits, so they, not the logits, travel from
    wherever the teacher runs.
    """

    hidden: Tensor
    """[s, b, H_t], after the final norm, the whole sequence on every tensor-parallel rank."""
    output_weight: Tensor
    """[V_local, H_t], cut over the vocabulary like the student's output layer."""
    final_logits: FinalLogits = NO_CHANGE

    def logits(self) -> Tensor:
        """The teacher's vocab-parallel logits, [s, b, V_local]."""
        hidden = self.hidden.to(self.output_weight.device, non_blocking=True)
        return self.final_logits(linear(hidden, self.output_weight))


class Teacher(Protocol):
    """Yields its states, without a gradient graph."""

    def groups(self, batches: Sequence[Microbatch]) -> list[Sequence[Microbatch]]:
        """The microbatches of a step, in groups whose states may be held together."""
        ...

    def states(self, batches: Sequence[Microbatch]) -> Iterator[TeacherStates]:
        """The states of each of `batches`, in order, where the student's last stage is; elsewhere
        none.  Collective over the ranks of a pipeline."""
        ...
