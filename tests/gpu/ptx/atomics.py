"""atom and red: read-modify-write, one lane after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .access import CACHE_HINTS, SCOPES, check, element_dtype
from .addressing import SPACES, Place, address_reader, places, space_of
from .float_ops import flush
from .memory import WRITTEN
from .operation import Array, Index, Operation, decodes, per_lane, reader, writer
from .ordering import SEMANTICS
from .scalar_types import HALF_TYPES, is_float
from .shadow import STRONG_WRITE
from .syntax import Instruction, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

# (old, operand, second operand of cas) -> new
UPDATES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "add": lambda old, x, y: old + x,
    "min": lambda old, x, y: np.minimum(old, x),
    "max": lambda old, x, y: np.maximum(old, x),
    "and": lambda old, x, y: old & x,
    "or": lambda old, x, y: old | x,
    "xor": lambda old, x, y: old ^ x,
    "exch": lambda old, x, y: x,
    "cas": lambda old, x, y: np.where(old == x, y, old),
    "inc": lambda old, x, y: np.where(old >= x, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, x, y: np.where((old == 0) | (old > x), x, old - old.dtype.type(1)),
}


@decodes("atom", "red")
def _atomic(instruction: Instruction) -> Operation:
    instruction.only("relaxed", *SEMANTICS, *SCOPES, *SPACES, *CACHE_HINTS, *UPDATES)
    name, type_ = instruction.one_of(UPDATES), instruction.type
    if name is None or type_ in HALF_TYPES or (is_float(type_) and name != "add"):
        raise UnsupportedPtxError(instruction.text)
    space = space_of(instruction)
    if instruction.has("cta") and space != "shared":
        raise UnsupportedPtxError(
            f"block-scope atomic outside of shared memory: {instruction.text!r}"
        )
    operands = list(instruction.operands)
    target = operands.pop(0) if instruction.opcode == "atom" else None
    address, *sources = operands
    dtype = element_dtype(type_)
    read_address, write = address_reader(address, space), writer(target)
    readers = [reader(source, type_) for source in sources[: 2 if name == "cas" else 1]]
    update = UPDATES[name]

    def run(m: Machine, index: Index) -> None:
        lanes = m.all_lanes if index is None else index
        where = read_address(m, index)
        values = [per_lane(read(m, index), len(lanes)) for read in readers]
        old = np.empty(len(lanes), dtype)
        for place in places(m, space, where, lanes, dtype.itemsize):
            m.ordering.before_write(m, instruction, place.lanes)
            check(m, instruction, place, dtype.itemsize, STRONG_WRITE)
            _check_written(m, instruction, place, dtype.itemsize)
            chosen = slice(None) if place.chosen is None else place.chosen
            order = m.lane_order(len(place.lanes))
            # global float additions flush subnormals, shared ones do not
            flushes = type_ == "f32" and place.space == "global"
            x, y = values[0][chosen], values[-1][chosen]
            old[chosen] = _apply(place, dtype, update, x, y, order, flushes)
            m.ordering.modify(m, instruction, place, order)
        write(m, index, old)

    return run


def _apply(
    place: Place,
    dtype: np.dtype,
    update: Callable[[Array, Array, Array], Array],
    x: Array,
    y: Array,
    order: Array,
    flushes: bool,
) -> Array:
    """Rounds in which no two lanes share an address; returns what each lane found."""
    memory = place.memory.values(dtype)
    elements = place.offsets // dtype.itemsize
    old = np.empty(len(elements), dtype)
    by_address = order[np.argsort(elements[order], kind="stable")]
    first = np.flatnonzero(np.diff(elements[by_address], prepend=-1))
    turn = np.arange(len(elements)) - np.repeat(first, np.diff(first, append=len(elements)))
    by_turn = np.argsort(turn, kind="stable")
    starts = np.flatnonzero(np.diff(turn[by_turn], prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(elements)]):
        lanes = by_address[by_turn[start:end]]
        before = memory[elements[lanes]]
        old[lanes] = before
        if flushes:
            memory[elements[lanes]] = flush(update(flush(before), flush(x[lanes]), y[lanes]))
        else:
            memory[elements[lanes]] = update(before, x[lanes], y[lanes])
    return old


def _check_written(m: Machine, instruction: Instruction, place: Place, size: int) -> None:
    unwritten = place.memory.lanes_without(place.offsets, size, WRITTEN)
    if unwritten.any():
        lane = place.lanes[np.flatnonzero(unwritten)[0]]
        m.findings.add(
            "uninitialised", m.place(instruction),
            f"{place.space} atomic by {m.who(lane)} at {m.describe(instruction)}",
        )  # fmt: skip
        place.memory.mark(place.offsets, size, WRITTEN)
