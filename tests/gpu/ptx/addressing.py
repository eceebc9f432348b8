"""From PTX addresses to places in memory, and the instructions that convert between windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import GLOBAL_BASE, PARAMETER_WINDOW, RANK_SHIFT, SHARED_WINDOW, Memory
from .operation import (
    Array,
    Index,
    Operation,
    Reader,
    decodes,
    elementwise,
    per_lane,
    reader,
    writer,
)
from .shadow import Shadow
from .syntax import Address, Instruction, Operand, Register, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

SPACES = {
    "global": "global",
    "const": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "shared",
    "param": "param",
    "param::entry": "param",
}


@dataclass(frozen=True)
class Place:
    """Where some lanes access: offsets into one memory, -1 where there is no such address."""

    space: str
    memory: Memory
    shadow: Shadow | None
    offsets: Array
    lanes: Array
    chosen: Array | None  # positions among the executing lanes; None: all of them


def space_of(instruction: Instruction) -> str:
    if instruction.has("local"):
        raise UnsupportedPtxError(f"local memory: {instruction.text!r}")
    named = instruction.one_of(SPACES)
    return SPACES[named] if named else "generic"


def address_reader(operand: Operand, space: str) -> Reader:
    """Reads the address operand of an instruction as int64, one for each executing lane."""
    if not isinstance(operand, Address):
        raise UnsupportedPtxError(f"address operand {operand}")
    # a shared address may come in a register of either width
    base = operand.base
    width = base.type[1:] if isinstance(base, Register) else "64"
    read = reader(base, f"u{width}")
    offset = operand.offset

    def addresses(m: Machine, index: Index) -> Array:
        count = m.lanes if index is None else len(index)
        where = read(m, index).astype(np.int64)
        return per_lane(where + offset if offset else where, count)

    return addresses


def places(m: Machine, space: str, where: Array, lanes: Array, size: int) -> Iterator[Place]:
    """Resolves addresses, one Place for each memory that they lie in."""
    if space != "generic":
        yield _place(m, space, where, lanes, size, None)
        return
    window = where >> 32
    if (window == window[0]).all():
        yield _generic(m, int(window[0]), where, lanes, size, None)
        return
    for value in np.unique(window):
        chosen = np.flatnonzero(window == value)
        yield _generic(m, int(value), where[chosen], lanes[chosen], size, chosen)


def _generic(
    m: Machine, window: int, where: Array, lanes: Array, size: int, chosen: Array | None
) -> Place:
    if window == SHARED_WINDOW >> 32:
        return _place(m, "shared", where - SHARED_WINDOW, lanes, size, chosen)
    if window == PARAMETER_WINDOW >> 32:
        return _place(m, "param", where, lanes, size, chosen)
    return _place(m, "global", where, lanes, size, chosen)


def _place(
    m: Machine, space: str, where: Array, lanes: Array, size: int, chosen: Array | None
) -> Place:
    if space == "shared":
        offsets = _shared_offsets(m, where, lanes, size)
        return Place("shared", m.shared, m.shared_shadow, offsets, lanes, chosen)
    if space == "param":
        memory, base, shadow = m.launch.parameters, PARAMETER_WINDOW, None
    else:
        memory, base, shadow = m.launch.memory, GLOBAL_BASE, m.launch.shadow
    offsets = where - base
    if offsets.min() < 0 or offsets.max() > memory.size - size:
        offsets = np.where((offsets < 0) | (offsets > memory.size - size), -1, offsets)
    return Place(space, memory, shadow, offsets, lanes, chosen)


def _shared_offsets(m: Machine, where: Array, lanes: Array, size: int) -> Array:
    """A block's shared memory is a stretch of the chunk's; a rank names a block of the cluster."""
    block = m.block_of(lanes)
    rank = where >> RANK_SHIFT
    if rank.any():
        cluster = block // m.cluster_size * m.cluster_size
        block = np.where(rank == 0, block, cluster + rank - 1)
        wrong = (rank < 0) | (rank > m.cluster_size)
        where = np.where(wrong, m.shared_stride, where & ((1 << RANK_SHIFT) - 1))
        block = np.where(wrong, 0, block)
    outside = where + size > m.shared_stride
    offsets = block * m.shared_stride + where
    return np.where(outside, -1, offsets) if outside.any() else offsets


@decodes("cvta")
def _convert_address(instruction: Instruction) -> Operation:
    instruction.only("to", *SPACES)
    space = space_of(instruction)
    target, source = instruction.operands
    if space != "shared":
        return elementwise(target, [(source, "u64")], lambda x: x)
    shift = np.uint64(SHARED_WINDOW)
    if instruction.has("to"):
        return elementwise(target, [(source, "u64")], lambda x: x - shift)
    return elementwise(target, [(source, "u64")], lambda x: x + shift)


@decodes("isspacep")
def _in_space(instruction: Instruction) -> Operation:
    instruction.only(*SPACES)
    space = instruction.modifiers[0]
    target, source = instruction.operands

    def inside(x: Array) -> Array:
        window = x >> np.uint64(32)
        if SPACES[space] == "param":
            return window == PARAMETER_WINDOW >> 32
        if SPACES[space] == "global":
            return window == GLOBAL_BASE >> 32
        own = (x & np.uint64(0xFFFFFFFF)) >> np.uint64(RANK_SHIFT) == 0
        shared = window == SHARED_WINDOW >> 32
        return shared if space == "shared::cluster" else shared & own

    return elementwise(target, [(source, "u64")], inside)


@decodes("mapa")
def _map_address(instruction: Instruction) -> Operation:
    """The address of the same variable in another block of the cluster."""
    instruction.only("shared::cluster")
    target, source, rank = instruction.operands
    type_ = instruction.type

    def mapped(address: Array, rank: Array) -> Array:
        low = address.astype(np.uint64) & np.uint64((1 << RANK_SHIFT) - 1)
        window = address.astype(np.uint64) & np.uint64(0xFFFFFFFF_00000000)
        number = rank.astype(np.uint64) + np.uint64(1)
        return (window | number << np.uint64(RANK_SHIFT) | low).astype(address.dtype)

    return elementwise(target, [(source, type_), (rank, "u32")], mapped)


@decodes("getctarank")
def _rank_of_address(instruction: Instruction) -> Operation:
    instruction.only("shared::cluster")
    target, source = instruction.operands
    read, write = reader(source, instruction.type), writer(target)

    def run(m: Machine, index: Index) -> None:
        low = read(m, index).astype(np.uint64) & np.uint64(0xFFFFFFFF)
        rank = (low >> np.uint64(RANK_SHIFT)).astype(np.int64)
        own = m.symbol("%cluster_ctarank").astype(np.int64)
        own = own if index is None or own.shape[0] == 1 else own[index]
        write(m, index, np.where(rank == 0, own, rank - 1).astype(np.uint32))

    return run
