"""Do all ranks of a group say the same?  For set-up and for the hunt for a fault: it communicates.

Ranks that differ in the arguments of one collective call abort, hang or compute garbage; none of
them can notice alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agreed", "digest", "gather"]

Value = TypeVar("Value")


def gather(value: Value, group: dist.ProcessGroup) -> list[Value]:
    """The values of all ranks, in rank order; they may have different sizes.  Collective."""
    values: list[Value | None] = [None] * group.size()
    dist.all_gather_object(values, value, group=group)
    return cast("list[Value]", values)


def agreed(
    caller: str,
    local: Callable[[], Value],
    facts: Callable[[Value], Mapping[str, object]],
    group: dist.ProcessGroup | None,
) -> Value:
    """local() of this rank, once it has raised on no rank and all ranks have stated the same facts.

    local: what this rank does before it communicates, its refusals among it.
    facts: of what local() returned, by name; compared as they are printed.
    Raises on every rank or on none: the error of local() where it raised, else ValueError that
    names the ranks and what they refuse, or the facts and who states what.  Collective over
    `group`; with one rank, and under torch.compile, it is local() alone.
    """
    if torch.compiler.is_compiling() or group is None or group.size() == 1:
        return local()
    mine: str | dict[str, str]
    try:
        value = local()
        mine = {name: str(fact) for name, fact in facts(value).items()}
    except Exception as error:  # of whatever kind: the other ranks wait for word
        gather(str(error), group)
        raise
    everyone = gather(mine, group)
    refusals = [f"rank {rank} ({it})" for rank, it in enumerate(everyone) if isinstance(it, str)]
    if refusals:
        raise ValueError(
            f"{caller}: refused on {', '.join(refusals)}; the arguments of this rank are good"
        )
    differences = _differences([theirs for theirs in everyone if isinstance(theirs, dict)])
    if differences:
        raise ValueError(
            f"{caller}: the {len(everyone)} ranks of the group must pass the same, but they differ "
            f"in {'; '.join(differences)}"
        )
    return value


def _differences(facts_of_ranks: list[dict[str, str]]) -> list[str]:
    """The facts that are not the same on all ranks, with who states what."""
    differences = []
    for name in facts_of_ranks[0]:
        ranks_by_value: dict[str, list[int]] = {}
        for rank, facts in enumerate(facts_of_ranks):
            ranks_by_value.setdefault(facts[name], []).append(rank)
        if len(ranks_by_value) > 1:
            parts = [f"{value} on rank {ranks}" for value, ranks in ranks_by_value.items()]
            differences.append(f"{name} ({', '.join(parts)})")
    return differences


def digest(tensor: Tensor | None) -> str:
    """Dtype, shape and a hash of the bytes: equal for equal tensors on any device."""
    if tensor is None:
        return "None"
    flat = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
    content = hashlib.blake2b(flat.numpy().tobytes(), digest_size=8).hexdigest()
    return f"{tensor.dtype} {list(tensor.shape)} #{content}"
