"""Instructions that the threads of a warp execute together, as their mask says.

Each works on `groups`: lanes in rows, one row for each warp and mask. Lanes wait until every lane
that their mask names is there; exited lanes are not waited for, as on hardware, but reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from .integer_ops import population
from .operation import Array, Index, Operation, decodes, parts, per_lane, reader, writer
from .scalar_types import bits_of, is_float
from .syntax import Instruction, Operand, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

WarpOperation = Callable[["Machine", Array], None]
FULL = np.uint32(0xFFFFFFFF)
BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)
WARP_DECODERS: dict[str, Callable[[Instruction], WarpOperation]] = {}


def is_warp_operation(instruction: Instruction) -> bool:
    if instruction.opcode == "bar":
        return instruction.has("warp")
    return instruction.opcode in WARP_DECODERS


def mask_operand(instruction: Instruction) -> Operand:
    return instruction.operands[-1]


def _decodes(opcode: str) -> Callable[[Callable[[Instruction], WarpOperation]], None]:
    def register(decoder: Callable[[Instruction], WarpOperation]) -> None:
        WARP_DECODERS[opcode] = decoder

    return register


def whole_warps(lanes: Array) -> bool:
    """Whether these (ascending) lanes are all lanes of some warps."""
    if len(lanes) % 32:
        return False
    first = lanes[::32]
    return not (first % 32).any() and bool((lanes[31::32] - first == 31).all())


def lane_mask(m: Machine, lanes: Array) -> Array:
    """For each warp of the chunk, the bits of these lanes."""
    bits = np.zeros(m.lanes // 32, np.uint32)
    np.bitwise_or.at(bits, lanes // 32, BIT[lanes % 32])
    return bits


class WarpWaits:
    """Lanes that wait for others of their mask."""

    def __init__(self, instruction: Instruction, operation: WarpOperation) -> None:
        self.instruction = instruction
        self.operation = operation
        self.read_mask = reader(mask_operand(instruction), "u32")

    def execute(self, m: Machine, at: int, index: Index) -> bool:
        """True when the lanes could not all go on at once: their program counters are set."""
        lanes = m.all_lanes if index is None else index
        mask = self.read_mask(m, index)
        if (mask == FULL).all() and (index is None or whole_warps(lanes)):
            self.operation(m, lanes.reshape(-1, 32))
            return False
        own = (per_lane(mask, len(lanes)) & BIT[lanes % 32]) != 0
        if not own.all():
            lane = lanes[np.flatnonzero(~own)[0]]
            m.findings.add(
                "warp mask", m.place(self.instruction),
                f"{m.who(lane)} is not in its own mask at {m.describe(self.instruction)}",
            )  # fmt: skip
        m.pc[lanes] = at
        m.state[lanes] = m.AT_WARP
        self.release(m)
        return True

    def release(self, m: Machine) -> None:
        """Let those go whose mask is met."""
        at = self.instruction.index
        here = np.flatnonzero((m.state == m.AT_WARP) & (m.pc == at))
        if not len(here):
            return
        present = lane_mask(m, here)
        gone = lane_mask(m, np.flatnonzero(m.state == m.GONE))
        mask = per_lane(self.read_mask(m, here), len(here))
        warp = here // 32
        met = (mask & ~(present[warp] | gone[warp])) == 0
        if not met.any():
            return
        lanes, mask = here[met], mask[met]
        self._report_gone(m, lanes, mask, gone)
        for group in self._groups(m, lanes, mask):
            self.operation(m, group)
        m.state[lanes] = m.RUNNING
        m.pc[lanes] = at + 1

    def _report_gone(self, m: Machine, lanes: Array, mask: Array, gone: Array) -> None:
        dead = (mask & gone[lanes // 32]) != 0
        if dead.any():
            lane = lanes[np.flatnonzero(dead)[0]]
            m.findings.add(
                "warp mask", m.place(self.instruction),
                f"the mask of {m.who(lane)} at {m.describe(self.instruction)} names lanes that"
                " have exited",
            )  # fmt: skip

    def _groups(self, m: Machine, lanes: Array, mask: Array) -> Iterator[Array]:
        """Rows of equal length, one for each warp and mask."""
        key = lanes // 32 << 32 | mask
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        by_length: dict[int, list[Array]] = {}
        for group in np.split(lanes[order], starts[1:]):
            by_length.setdefault(len(group), []).append(group)
        masks = mask[order][starts]
        lengths = np.diff(starts, append=len(lanes))
        absent = np.flatnonzero(population(masks) > lengths)
        if len(absent):
            k = int(absent[0])
            m.findings.add(
                "warp mask", m.place(self.instruction),
                f"lanes that {m.who(lanes[order][starts[k]])} names came with other masks, or not"
                f" at all, at {m.describe(self.instruction)}",
            )  # fmt: skip
        for groups in by_length.values():
            yield np.stack(groups)


def _write_rows(write: object, m: Machine, groups: Array, values: Array) -> None:
    """Write values (one for each row, or one for each lane) to the lanes of the groups."""
    lanes = groups.ravel()
    values = np.broadcast_to(values.reshape(len(groups), -1), groups.shape).ravel()
    index = None if len(lanes) == m.lanes else lanes
    write(m, index, np.ascontiguousarray(values))  # type: ignore[operator]


def _rows(m: Machine, read: object, groups: Array) -> Array:
    lanes = groups.ravel()
    return per_lane(read(m, lanes), len(lanes)).reshape(groups.shape)  # type: ignore[operator]


@_decodes("bar")
def _warp_barrier(instruction: Instruction) -> WarpOperation:
    def run(m: Machine, groups: Array) -> None:
        if groups.shape[1] == 32:
            m.clocks.warp_barrier(groups.ravel())
        else:
            for group in groups:
                m.clocks.warp_barrier(group)

    return run


@_decodes("shfl")
def _shuffle(instruction: Instruction) -> WarpOperation:
    instruction.only("sync", "up", "down", "bfly", "idx")
    mode = instruction.one_of(("up", "down", "bfly", "idx"))
    targets = parts(instruction.operands[0])
    write = writer(targets[0])
    write_valid = writer(targets[1] if len(targets) > 1 else None)
    read, read_b, read_c = (reader(operand, "u32") for operand in instruction.operands[1:4])

    def run(m: Machine, groups: Array) -> None:
        lane = groups % 32
        b = _rows(m, read_b, groups).astype(np.int64) & 31
        c = _rows(m, read_c, groups).astype(np.int64)
        clamp, segment = c & 31, c >> 8 & 31
        last = (lane & segment) | (clamp & ~segment)
        first = lane & segment
        if mode == "up":
            source = lane - b
            valid = source >= last
        else:
            source = {"down": lane + b, "bfly": lane ^ b}.get(str(mode), first | (b & ~segment))
            valid = source <= last
        source = np.where(valid, source, lane) + (groups - lane)
        if groups.shape[1] < 32:
            absent = ~(source[:, :, None] == groups[:, None, :]).any(2)
            if absent.any():
                who = m.who(groups[absent][0])
                m.findings.add(
                    "warp mask", m.place(instruction),
                    f"{who} reads a lane that takes no part at {m.describe(instruction)}",
                )  # fmt: skip
        _write_rows(write, m, groups, _rows(m, read, source))
        _write_rows(write_valid, m, groups, valid)

    return run


@_decodes("vote")
def _vote(instruction: Instruction) -> WarpOperation:
    instruction.only("sync", "all", "any", "uni", "ballot")
    mode = instruction.one_of(("all", "any", "uni", "ballot"))
    write, read = writer(instruction.operands[0]), reader(instruction.operands[1], "pred")

    def run(m: Machine, groups: Array) -> None:
        votes = _rows(m, read, groups)
        if mode == "ballot":
            result = np.where(votes, BIT[groups % 32], np.uint32(0)).sum(1, dtype=np.uint32)
        else:
            everyone, someone = votes.all(1), votes.any(1)
            result = {"all": everyone, "any": someone}.get(str(mode), everyone | ~someone)
        _write_rows(write, m, groups, result)

    return run


@_decodes("match")
def _match(instruction: Instruction) -> WarpOperation:
    instruction.only("sync", "any", "all")
    targets = parts(instruction.operands[0])
    write = writer(targets[0])
    write_all = writer(targets[1] if len(targets) > 1 else None)
    read = reader(instruction.operands[1], f"u{bits_of(instruction.type)}")

    def run(m: Machine, groups: Array) -> None:
        values = _rows(m, read, groups)
        equal = values[:, :, None] == values[:, None, :]
        bits = np.where(equal, BIT[groups % 32][:, None, :], np.uint32(0)).sum(2, dtype=np.uint32)
        if instruction.has("all"):
            same = equal.all((1, 2))
            bits = np.where(same[:, None], bits, np.uint32(0))
            _write_rows(write_all, m, groups, same)
        _write_rows(write, m, groups, bits)

    return run


@_decodes("redux")
def _reduce(instruction: Instruction) -> WarpOperation:
    functions = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    instruction.only("sync", *functions)
    name, type_ = instruction.one_of(functions), instruction.type
    if name is None or is_float(type_):
        raise UnsupportedPtxError(instruction.text)
    function = functions[name]
    write, read = writer(instruction.operands[0]), reader(instruction.operands[1], type_)

    def run(m: Machine, groups: Array) -> None:
        values = _rows(m, read, groups)
        _write_rows(write, m, groups, function.reduce(values, axis=1, dtype=values.dtype))

    return run


@_decodes("elect")
def _elect(instruction: Instruction) -> WarpOperation:
    instruction.only("sync")
    leader, chosen = parts(instruction.operands[0])
    write, write_chosen = writer(leader), writer(chosen)

    def run(m: Machine, groups: Array) -> None:
        first = groups[:, :1]
        _write_rows(write, m, groups, (first % 32).astype(np.uint32))
        _write_rows(write_chosen, m, groups, groups == first)

    return run


@decodes("activemask")
def _active_mask(instruction: Instruction) -> Operation:
    write = writer(instruction.operands[0])

    def run(m: Machine, index: Index) -> None:
        lanes = m.all_lanes if index is None else index
        write(m, index, lane_mask(m, lanes)[lanes // 32])

    return run
