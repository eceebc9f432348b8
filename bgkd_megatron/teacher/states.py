"""What the loss asks of a teacher."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import linear

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

    def logits(self) -> Tensor:
        """The teacher's vocab-parallel logits, [s, b, V_local]."""
        return linear(self.hidden, self.output_weight)


class Teacher(Protocol):
    """Yields its states for a microbatch, without a gradient graph."""

    def states(self, tokens: Tensor, position_ids: Tensor) -> TeacherStates:
        """tokens, position_ids: [b, s] int64, as the student sees them."""
        ...
