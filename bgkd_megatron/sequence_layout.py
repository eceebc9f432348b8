"""How the N tokens of a loss lie in sequences: for objectives in which neighbours play a part.

With context parallelism every rank of the group holds two pieces of each sequence, from its two
ends: of 2 * size pieces, rank r has number r and number 2 * size - 1 - r (Megatron-Core's "zigzag",
which balances causal attention).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.vocab_stats import all_gather

__all__ = ["SequenceLayout", "piece_of"]


@dataclass(frozen=True, eq=False)
class SequenceLayout:
    """N = batch_size * sequence_length tokens of this rank, sequence by sequence (batch_first) or
    position by position (Megatron's order, [s, b]).

    cp_group: ranks that share the sequences; None for one. Each has as many tokens.
    ends: [N] bool, True where the next position belongs to another document of a packed sequence;
        None where a sequence is one document. The end of a sequence is always one.
    Raises ValueError for sizes that are not positive or do not match.
    """

    sequence_length: int
    batch_size: int
    batch_first: bool = False
    cp_group: dist.ProcessGroup | None = None
    ends: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("sequence_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SequenceLayout: {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.cp_size > 1 and self.sequence_length % 2:
            raise ValueError(
                "SequenceLayout: with context parallelism a rank holds two pieces of a sequence: "
                f"sequence_length must be even, got {self.sequence_length}"
            )
        if self.ends is not None and (
            self.ends.shape != (self.num_tokens,) or self.ends.dtype != torch.bool
        ):
            raise ValueError(
                f"SequenceLayout: ends must be bool [{self.num_tokens}] (sequence_length * "
                f"batch_size), got {self.ends.dtype} {list(self.ends.shape)}"
            )

    @property
    def num_tokens(self) -> int:
        """N"""
        return self.sequence_length * self.batch_size

    @property
    def cp_size(self) -> int:
        """Ranks that share the sequences."""
        return 1 if self.cp_group is None else self.cp_group.size()

    def document_ends(self, num_tokens: int, device: torch.device) -> Tensor:
        """[N] bool; ValueError if the loss has another number of tokens."""
        if num_tokens != self.num_tokens:
            raise ValueError(
                f"the loss has {num_tokens} tokens, its SequenceLayout {self.batch_size} sequences "
                f"of {self.sequence_length}"
            )
        if self.ends is None:
            return torch.zeros(num_tokens, dtype=torch.bool, device=device)
        return self.ends

    def whole(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Each [N] as [b, s] with the tokens of all ranks, in their order. One all-gather over
        cp_group for all together; its gradient takes another one."""
        own = torch.stack([self._by_sequence(row) for row in rows])
        everyone = own if self.cp_size == 1 else _Whole.apply(own, self.cp_group)
        return everyone.unbind(0)

    def own(self, whole: Tensor) -> Tensor:
        """[N] of this rank from [b, s]."""
        if self.cp_group is not None and self.cp_size > 1:
            whole = piece_of(whole, self.cp_group.rank(), self.cp_size)
        return whole.reshape(-1) if self.batch_first else whole.t().reshape(-1)

    def _by_sequence(self, row: Tensor) -> Tensor:
        """[b, s_local]"""
        if self.batch_first:
            return row.view(self.batch_size, self.sequence_length)
        return row.view(self.sequence_length, self.batch_size).t()


def piece_of(whole: Tensor, rank: int, size: int) -> Tensor:
    """The two pieces of a rank of `size`, [..., s / size], of [..., s]."""
    if size == 1:
        return whole
    pieces = whole.chunk(2 * size, dim=-1)
    return torch.cat((pieces[rank], pieces[2 * size - 1 - rank]), dim=-1)


class _Whole(torch.autograd.Function):
    """[..., s / size] of every rank -> [..., s] in the order of the tokens. What each rank's loss
    gives to a token goes back to the rank that holds it, added in rank order."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = group.size()
        gathered = own.new_empty((size, *own.shape))
        all_gather(gathered.flatten(), own.contiguous().flatten(), group=group)
        firsts, seconds = zip(*(part.chunk(2, dim=-1) for part in gathered), strict=True)
        return torch.cat((*firsts, *reversed(seconds)), dim=-1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        group: dist.ProcessGroup = ctx.group
        # A few numbers a token: simpler than to send each rank its part, and the order is fixed.
        gathered = upstream.new_empty((group.size(), *upstream.shape))
        all_gather(gathered.flatten(), upstream.contiguous().flatten(), group=group)
        total = gathered[0]
        for part in gathered[1:]:
            total = total + part
        return piece_of(total, group.rank(), group.size()), None
