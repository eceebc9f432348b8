"""Loads and stores, with every check that is made on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .addressing import SPACES, Place, address_reader, places, space_of
from .memory import EXISTS, FILLING, READABLE, WRITTEN
from .operation import Array, Index, Operation, decodes, parts, reader, writer
from .scalar_types import HALF_TYPES, UNSIGNED, bits_of, dtype_of
from .shadow import READ, STRONG_READ, STRONG_WRITE, WRITE, Race
from .syntax import Address, Instruction, Symbol, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

# How an access is cached changes nothing here.
CACHE_HINTS = (
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified",
    "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal", "L2::evict_first", "L2::evict_last", "L2::cache_hint",
    "L2::64B", "L2::128B", "L2::256B",
)  # fmt: skip
STRENGTHS = ("weak", "volatile", "relaxed", "acquire", "release")
SCOPES = ("cta", "cluster", "gpu", "sys")
VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def element_dtype(type_: str) -> np.dtype:
    return np.dtype(UNSIGNED[bits_of(type_)]) if type_ in HALF_TYPES else dtype_of(type_)


@decodes("ld", "ldu")
def _load(instruction: Instruction) -> Operation:
    instruction.only(*STRENGTHS, *SCOPES, *SPACES, *CACHE_HINTS, *VECTORS)
    space = space_of(instruction)
    target, address = instruction.operands[:2]
    dtype = element_dtype(instruction.type)
    writers = [writer(part) for part in parts(target)]
    size = dtype.itemsize * len(writers)
    if len(writers) != VECTORS.get(instruction.one_of(VECTORS) or "", 1):
        raise UnsupportedPtxError(instruction.text)
    if space == "param" and isinstance(address, Address) and isinstance(address.base, Symbol):
        return _load_parameter(address, address.base.name, dtype, size, writers)
    read_address = address_reader(address, space)
    strong = instruction.has("volatile", "relaxed", "acquire")
    kind = STRONG_READ if strong else READ

    def run(m: Machine, index: Index) -> None:
        lanes = m.all_lanes if index is None else index
        where = read_address(m, index)
        data = None
        for place in places(m, space, where, lanes, size):
            check(m, instruction, place, size, kind)
            if strong:
                m.ordering.after_read(m, instruction, place)
            loaded = place.memory.load(place.offsets, size)
            if place.chosen is None:
                data = loaded
            else:
                if data is None:
                    data = np.zeros((len(lanes), size), np.uint8)
                data[place.chosen] = loaded
        assert data is not None
        elements = data.view(dtype)
        for position, write in enumerate(writers):
            write(m, index, np.ascontiguousarray(elements[:, position]))

    return run


def _load_parameter(
    address: Address, name: str, dtype: np.dtype, size: int, writers: list
) -> Operation:
    def run(m: Machine, index: Index) -> None:
        start = m.launch.parameter_offsets[name] + address.offset
        elements = m.launch.parameters.bytes[start : start + size].view(dtype)
        for position, write in enumerate(writers):
            write(m, index, elements[position : position + 1].copy())

    return run


@decodes("st")
def _store(instruction: Instruction) -> Operation:
    instruction.only(*STRENGTHS, *SCOPES, *SPACES, *CACHE_HINTS, *VECTORS)
    space = space_of(instruction)
    address, source = instruction.operands[:2]
    dtype = np.dtype(UNSIGNED[bits_of(instruction.type)])
    readers = [reader(part, f"u{dtype.itemsize * 8}") for part in parts(source)]
    if len(readers) != VECTORS.get(instruction.one_of(VECTORS) or "", 1) or space == "param":
        raise UnsupportedPtxError(instruction.text)
    size = dtype.itemsize * len(readers)
    read_address = address_reader(address, space)
    strong = instruction.has("volatile", "relaxed", "release")
    kind = STRONG_WRITE if strong else WRITE

    def run(m: Machine, index: Index) -> None:
        lanes = m.all_lanes if index is None else index
        where = read_address(m, index)
        values = np.empty((len(lanes), len(readers)), dtype)
        for position, read in enumerate(readers):
            values[:, position] = read(m, index)
        data = values.view(np.uint8)
        for place in places(m, space, where, lanes, size):
            if strong:
                m.ordering.before_write(m, instruction, place.lanes)
            check(m, instruction, place, size, kind)
            if strong:
                m.ordering.after_write(m, instruction, place, modify=False)
            place.memory.store(place.offsets, data if place.chosen is None else data[place.chosen])

    return run


def check(m: Machine, instruction: Instruction, place: Place, size: int, kind: int) -> None:
    """Bounds, alignment, whether what is read was written, races; and the profile."""
    offsets, memory = place.offsets, place.memory
    # a block's shared memory and every allocation start at a multiple of 256
    if (offsets & (size - 1)).any() or offsets.min() < 0:
        _misaligned_or_outside(m, instruction, place, size, kind)
    reads = kind in (READ, STRONG_READ)
    if not memory.all_have(offsets, size, READABLE if reads else EXISTS):
        _diagnose(m, instruction, place, size, kind)
    if place.space == "shared" and m.cluster_size > 1:
        m.clusters.check_remote(m, instruction, place)
    if place.shadow is not None:
        place.shadow.access(
            offsets, size, place.lanes, kind, instruction.index, m.clocks,
            lambda race: _report_race(m, instruction, place.space, race),
        )  # fmt: skip
        if instruction.has("nc"):
            _check_read_only(m, instruction, place, size)
    if m.profile is not None:
        what = {READ: "load", STRONG_READ: "load"}.get(kind, "store")
        m.profile.access(what, place.space, offsets, size, m.warp_of(place.lanes))


def _check_read_only(m: Machine, instruction: Instruction, place: Place, size: int) -> None:
    """.nc (what `const __restrict__` becomes) may return what a cache held before the write."""
    assert place.shadow is not None
    written = place.shadow.was_written(place.offsets, size)
    if written.any():
        lane = place.lanes[np.flatnonzero(written)[0]]
        m.findings.add(
            "read-only load", m.place(instruction),
            f"{m.who(lane)} at {m.describe(instruction)} reads what this launch has written;"
            " the load may come from a cache that does not know",
        )  # fmt: skip


def _misaligned_or_outside(
    m: Machine, instruction: Instruction, place: Place, size: int, kind: int
) -> None:
    wrong = (place.offsets & (size - 1) != 0) & (place.offsets >= 0)
    if wrong.any():
        lane = place.lanes[np.flatnonzero(wrong)[0]]
        m.findings.fatal(
            "misaligned", m.place(instruction),
            f"{size}-byte access by {m.who(lane)} at {m.describe(instruction)}",
        )  # fmt: skip
    _outside(m, instruction, place, size, kind, place.offsets < 0)


def _diagnose(m: Machine, instruction: Instruction, place: Place, size: int, kind: int) -> None:
    outside = (place.offsets < 0) | place.memory.lanes_without(
        np.maximum(place.offsets, 0), size, EXISTS
    )
    if outside.any():
        _outside(m, instruction, place, size, kind, outside)
    filling = place.memory.lanes_with(place.offsets, size, FILLING)
    if filling.any():
        lane = place.lanes[np.flatnonzero(filling)[0]]
        m.findings.add(
            "asynchronous copy", m.place(instruction),
            f"{m.who(lane)} touches bytes at {m.describe(instruction)} that cp.async is filling;"
            " wait for the group first",
        )  # fmt: skip
    if kind not in (READ, STRONG_READ):
        return
    unwritten = place.memory.lanes_without(place.offsets, size, WRITTEN)
    if unwritten.any():
        lane = place.lanes[np.flatnonzero(unwritten)[0]]
        m.findings.add(
            "uninitialised", m.place(instruction),
            f"{place.space} read by {m.who(lane)} ({int(unwritten.sum())} threads)"
            f" at {m.describe(instruction)}",
        )  # fmt: skip


def _outside(
    m: Machine, instruction: Instruction, place: Place, size: int, kind: int, outside: Array
) -> None:
    first = int(np.flatnonzero(outside)[0])
    what = "read" if kind in (READ, STRONG_READ) else "write"
    near = m.nearest(place.space, int(place.offsets[first]), int(place.lanes[first]))
    m.findings.fatal(
        "out of bounds", m.place(instruction),
        f"{what} of {size} bytes of {place.space} memory by {m.who(place.lanes[first])}"
        f" ({int(outside.sum())} threads) at {m.describe(instruction)}; {near}",
    )  # fmt: skip


def _report_race(m: Machine, instruction: Instruction, space: str, race: Race) -> None:
    earlier = m.kernel.code[race.code]
    m.findings.add(
        "race", (m.place(instruction), race.kind, race.code),
        f"{race.kind} ({space}): {m.who(race.lane)} at {m.describe(instruction)} against"
        f" {m.who_in_grid(race.thread)} at {m.describe(earlier)};"
        f" nothing orders them ({race.cells} cells)",
    )  # fmt: skip
