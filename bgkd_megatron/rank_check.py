"""Do all ranks of a group say the same?  For set-up and for the hunt for a fault: it communicates.

Ranks that differ in the arguments of one collective call abort, hang or compute garbage; none of
them can notice alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["digest", "gather", "require_same"]

Value = TypeVar("Value")


def gather(value: Value, group: dist.ProcessGroup) -> list[Value]:
    """The values of all ranks, in rank order; they may have different sizes.  Collective."""
    values: list[Value | None] = [None] * group.size()
    dist.all_gather_object(values, value, group=group)
    return cast("list[Value]", values)


def require_same(caller: str, facts: Mapping[str, object], group: dist.ProcessGroup | None) -> None:
    """Raises ValueError on every rank when a fact differs; it names the fact, ranks and values.

    Facts are compared as they are printed.  Collective over `group`.
    """
    if group is None:
        return
    everyone = gather({name: str(value) for name, value in facts.items()}, group)
    differences = []
    for name in facts:
        ranks_by_value: dict[str, list[int]] = {}
        for rank, theirs in enumerate(everyone):
            ranks_by_value.setdefault(theirs[name], []).append(rank)
        if len(ranks_by_value) > 1:
            parts = [f"{value} on rank {ranks}" for value, ranks in ranks_by_value.items()]
            differences.append(f"{name} ({', '.join(parts)})")
    if differences:
        raise ValueError(
            f"{caller}: the {group.size()} ranks of the tp_group must pass the same, but they "
            f"differ in {'; '.join(differences)}"
        )


def digest(tensor: Tensor | None) -> str:
    """Dtype, shape and a hash of the bytes: equal for equal tensors on any device."""
    if tensor is None:
        return "None"
    flat = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
    content = hashlib.blake2b(flat.numpy().tobytes(), digest_size=8).hexdigest()
    return f"{tensor.dtype} {list(tensor.shape)} #{content}"
