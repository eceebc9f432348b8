"""cp.async: copies from global to shared memory that land when their thread waits for them.

The copied bytes count as being filled from the copy until the wait, and whoever touches them in
between is reported; the write is checked for races both at the copy and at the wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .access import CACHE_HINTS, check
from .addressing import SPACES, Place, address_reader, places
from .memory import FILLING
from .operation import Array, Index, Operation, decodes, per_lane, reader
from .shadow import READ, WRITE
from .syntax import Immediate, Instruction, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class Pending:
    """One executed copy: for each lane its destination, its data and its group's number."""

    instruction: Instruction
    place: Place
    data: Array  # (n, size)
    groups: Array


class Copies:
    def __init__(self, lanes: int) -> None:
        self.pending: list[Pending] = []
        self.committed = np.zeros(lanes, np.int64)  # groups so far

    def finish(self, m: Machine, lanes: Array, groups_left: int | None) -> None:
        """Land the copies of these lanes except for their latest groups; None: every copy."""
        waiting = np.zeros(m.lanes, bool)
        waiting[lanes] = True
        still: list[Pending] = []
        for copy in self.pending:
            place = copy.place
            lands = waiting[place.lanes]
            if groups_left is not None:
                lands &= copy.groups < self.committed[place.lanes] - groups_left
            if lands.any():
                done = _subset(copy, lands)
                size = done.data.shape[1]
                done.place.memory.unmark(done.place.offsets, size, FILLING)
                check(m, copy.instruction, done.place, size, WRITE)
                done.place.memory.store(done.place.offsets, done.data)
            if not lands.all():
                still.append(_subset(copy, ~lands))
        self.pending = still

    def check_none_left(self, m: Machine) -> None:
        if self.pending:
            instruction = self.pending[0].instruction
            m.findings.add(
                "asynchronous copy", m.place(instruction),
                f"the copy at {m.describe(instruction)} is never waited for",
            )  # fmt: skip


def _subset(copy: Pending, chosen: Array) -> Pending:
    place = copy.place
    part = Place(
        place.space, place.memory, place.shadow, place.offsets[chosen], place.lanes[chosen], None
    )
    return Pending(copy.instruction, part, copy.data[chosen], copy.groups[chosen])


@decodes("cp")
def _copy(instruction: Instruction) -> Operation:
    if instruction.modifiers[0] != "async" or instruction.has("bulk", "mbarrier"):
        raise UnsupportedPtxError(instruction.text)
    if instruction.has("commit_group"):
        return _commit
    if instruction.has("wait_group", "wait_all"):
        return _wait(instruction)
    instruction.only("async", "ca", "cg", *SPACES, *CACHE_HINTS)
    target, source, count, *rest = instruction.operands
    if not isinstance(count, Immediate) or len(rest) > 1 or instruction.has("L2::cache_hint"):
        raise UnsupportedPtxError(instruction.text)
    size = count.bits
    read_target, read_source = address_reader(target, "shared"), address_reader(source, "global")
    read_length = reader(rest[0], "u32") if rest else None

    def run(m: Machine, index: Index) -> None:
        lanes = m.all_lanes if index is None else index
        data = np.zeros((len(lanes), size), np.uint8)  # what the source does not cover is zero
        length = per_lane(read_length(m, index), len(lanes)) if read_length else None
        where = read_source(m, index)
        for given in (size,) if length is None else np.unique(length):
            chosen = np.arange(len(lanes)) if length is None else np.flatnonzero(length == given)
            if given and given not in (1, 2, 4, 8, 16):
                raise UnsupportedPtxError(f"cp.async of {given} bytes")
            if given:
                for place in places(m, "global", where[chosen], lanes[chosen], int(given)):
                    check(m, instruction, place, int(given), READ)
                    data[chosen, : int(given)] = place.memory.load(place.offsets, int(given))
        for place in places(m, "shared", read_target(m, index), lanes, size):
            check(m, instruction, place, size, WRITE)
            place.memory.mark(place.offsets, size, FILLING)
            groups = m.copies.committed[lanes]
            m.copies.pending.append(Pending(instruction, place, data, groups))

    return run


def _commit(m: Machine, index: Index) -> None:
    m.copies.committed[m.all_lanes if index is None else index] += 1


def _wait(instruction: Instruction) -> Operation:
    left: int | None = None
    if instruction.has("wait_group"):
        (operand,) = instruction.operands
        if not isinstance(operand, Immediate):
            raise UnsupportedPtxError(instruction.text)
        left = operand.bits

    def run(m: Machine, index: Index) -> None:
        m.copies.finish(m, m.all_lanes if index is None else index, left)

    return run
