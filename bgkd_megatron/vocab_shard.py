"""How a vocabulary is cut over the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from bgkd_megatron import rank_check

__all__ = ["VocabShard"]


@dataclass(frozen=True)
class VocabShard:
    """Which token ids the local columns of the logits hold.

    vocab_size: real vocabulary, common to teacher and student; ids from there on are padding and
        are never read.
    widths: the student's columns, with padding, on each rank of tp_group. The ranks hold the ids
        0, 1, 2, ... in rank order, so there is neither a gap nor an overlap.
    tp_group: the ranks; None when one rank holds all.

    It must be the same on all ranks. `uneven` makes sure of that; `even` and the constructor do not
    communicate, and vocab_stats compares the shards when it is called with check_ranks=True.
    Raises TypeError, or ValueError when the columns do not fit the vocabulary or the group.
    """

    vocab_size: int
    widths: tuple[int, ...]
    tp_group: dist.ProcessGroup | None = None
    start: int = field(init=False)
    """Global id of local column 0 (Megatron's vocab_start_index)."""
    num_columns: int = field(init=False)
    """Local columns of the student."""

    def __post_init__(self) -> None:
        _require_int("vocab_size", self.vocab_size)
        if not isinstance(self.widths, tuple):
            raise TypeError(f"VocabShard: widths must be a tuple of int, got {self.widths!r}")
        for width in self.widths:
            _require_int("each of the widths", width)
        rank, size = _rank_and_size(self.tp_group)
        if self.vocab_size < 1 or min(self.widths, default=0) < 0:
            raise ValueError(
                "VocabShard: vocab_size must be at least 1 and all widths at least 0, got "
                f"vocab_size={self.vocab_size}, widths={self.widths}"
            )
        if len(self.widths) != size:
            raise ValueError(
                f"VocabShard: there must be one width for each of {size} rank(s), got "
                f"{self.widths}: is this the group that the output layer is sharded over?"
            )
        _check_coverage(self.vocab_size, self.widths)
        object.__setattr__(self, "start", sum(self.widths[:rank]))
        object.__setattr__(self, "num_columns", self.widths[rank])

    @property
    def tp_size(self) -> int:
        return len(self.widths)

    @property
    def tp_rank(self) -> int:
        return _rank_and_size(self.tp_group)[0]

    @classmethod
    def even(
        cls, vocab_size: int, num_columns: int, tp_group: dist.ProcessGroup | None = None
    ) -> VocabShard:
        """Megatron's cut: every rank holds num_columns columns. No communication."""
        _require_int("num_columns", num_columns)
        return cls(vocab_size, (num_columns,) * _rank_and_size(tp_group)[1], tp_group)

    @classmethod
    def uneven(cls, vocab_size: int, num_columns: int, tp_group: dist.ProcessGroup) -> VocabShard:
        """Each rank with its own num_columns. Communicates: call it once, at set-up.

        Raises on every rank when one of them refuses its arguments or their vocab_size differ.
        """
        _require_group(tp_group)

        def local() -> None:
            _require_int("vocab_size", vocab_size)
            _require_int("num_columns", num_columns)

        rank_check.agreed("VocabShard", local, lambda _: {"vocab_size": vocab_size}, tp_group)
        return cls(vocab_size, tuple(rank_check.gather(num_columns, tp_group)), tp_group)


def _require_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"VocabShard: {name} must be an int, got {value!r} of type {type(value).__name__}"
        )


def _rank_and_size(tp_group: dist.ProcessGroup | None) -> tuple[int, int]:
    if tp_group is None:
        return 0, 1
    _require_group(tp_group)
    return tp_group.rank(), tp_group.size()


def _require_group(tp_group: Any) -> None:
    if not isinstance(tp_group, dist.ProcessGroup):
        raise TypeError(
            "VocabShard: tp_group must be a torch.distributed.ProcessGroup that this rank belongs "
            f"to, got {tp_group!r} of type {type(tp_group).__name__}"
        )


def _check_coverage(vocab_size: int, widths: tuple[int, ...]) -> None:
    if sum(widths) < vocab_size:
        raise ValueError(
            f"VocabShard: the {len(widths)} rank(s) of the tp_group hold {list(widths)} columns, "
            f"together fewer than the vocabulary of {vocab_size} token ids. Is this the group "
            f"that the output layer is sharded over?"
        )
    # Padding is a multiple of 128 (or 1024) columns per rank; twice the vocabulary is no padding.
    if sum(widths) - vocab_size >= max(vocab_size, 1024 * len(widths)):
        raise ValueError(
            f"VocabShard: the {len(widths)} rank(s) of the tp_group hold {list(widths)} columns, "
            f"at least twice the vocabulary of {vocab_size} token ids. Is this group larger than "
            f"the one that the output layer is sharded over?"
        )
