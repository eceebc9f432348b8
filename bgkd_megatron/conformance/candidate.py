"""What is checked: a loss, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.claims import Claim

__all__ = ["TOLERANCES", "Candidate", "Loss", "Reduction", "Setting", "Tolerance"]

Loss = Callable[[Tensor, Tensor, Tensor, dist.ProcessGroup], Tensor]
"""(this rank's columns of the student's logits [N, V_local], of the teacher's, labels [N] as global
ids, the tensor-parallel group) -> loss, the same on all ranks: [N], or a scalar."""

Reduction = Literal["none", "mean", "sum"]
"""One loss per token, or their mean or sum over the tokens that are not masked."""


@dataclass(frozen=True)
class Setting:
    """What a loss may have to know before it is called."""

    vocab_size: int
    """Real token ids; columns from there on are padding."""
    num_columns: int
    """Of this rank, with padding."""
    widths: tuple[int, ...]
    """The same of all ranks: equal but for a candidate that takes uneven shards."""
    group: dist.ProcessGroup


@dataclass(frozen=True)
class Tolerance:
    """value: |error| / (1 + |loss|), of the worst token; gradient: |error| / |gradient|, of all
    logits together (Euclidean norms)."""

    value: float
    gradient: float


_OF_FLOAT32 = 5e-5
"""A loss in float32 keeps about 1e-6 of logits in the tens."""
_ROUNDING = 2.0**-9
"""Relative error of one rounding to bfloat16, which has 8 binary digits."""
# A right loss may get and return bfloat16, and computes in float32.  What is rounded then: the loss
# once; the gradient from above (if the loss is in bfloat16) and the gradient, once each.
TOLERANCES: Mapping[torch.dtype, Tolerance] = MappingProxyType(
    {
        torch.float32: Tolerance(_OF_FLOAT32, _OF_FLOAT32),
        torch.bfloat16: Tolerance(_ROUNDING + _OF_FLOAT32, 2 * _ROUNDING + _OF_FLOAT32),
    }
)


@dataclass(frozen=True)
class Candidate:
    """A loss of a package, and what it says of itself.  It is judged by that alone."""

    name: str
    """Without the package's."""
    claim: Claim
    make: Callable[[Setting], Loss]
    """Called on every rank.  May import, and may raise ImportError."""
    package: str | None = None
    """The distribution that pip installs; None: the user's own code."""
    reduction: Reduction = "none"
    ignore_index: int | None = None
    """The label of masked tokens; their loss and gradient are 0.  None: it knows no mask; masked
    tokens then have some label and a gradient of 0 from above, as in Megatron's loss functions."""
    knows_padding: bool = False
    """Whether columns from vocab_size on are left out.  Otherwise no problem has such columns."""
    takes_uneven_shards: bool = False
    """Whether ranks may hold different numbers of columns.  Otherwise no problem has those."""
    tp_sizes: tuple[int, ...] | None = None
    """None: any."""
    needs_megatron: bool = False
    """Whether it takes the group from Megatron-Core's parallel_state."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that must be set before its package is imported."""
    tolerances: Mapping[torch.dtype, Tolerance] = field(default_factory=lambda: TOLERANCES)
    note: str = ""
    """What the reader of the table must know."""
