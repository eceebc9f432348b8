"""Fences, and what atomic variables publish between clusters: the "last block done" pattern.

Order needs what the PTX memory model asks for: the writer's fence before its atomic, the
reader's fence after its atomic, both at device scope or wider; or .release and .acquire on the
atomic itself.
Fences and atomics of .cta and .cluster scope order nothing here, so a kernel that relies on them is
reported as racing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .addressing import Place
from .operation import Array, Index, Operation, decodes
from .syntax import Instruction, Kernel

if TYPE_CHECKING:
    from .machine import Machine

WIDE_SCOPES = ("gpu", "sys", "gl")
SEMANTICS = ("acquire", "release", "acq_rel", "sc")


def _wide_enough(instruction: Instruction) -> bool:
    return instruction.has(*WIDE_SCOPES) or not instruction.has("cta", "cluster")


def _is_fence(instruction: Instruction) -> bool:
    if instruction.opcode == "membar":
        return instruction.has(*WIDE_SCOPES)
    return (
        instruction.opcode == "fence"
        and not instruction.has("proxy", "mbarrier_init")
        and _wide_enough(instruction)
    )


class Ordering:
    """Does nothing in a kernel without fences and without acquire or release."""

    def __init__(self, kernel: Kernel) -> None:
        self.active = any(
            _is_fence(i) or (i.opcode in ("ld", "st", "atom", "red") and i.has(*SEMANTICS))
            for i in kernel.code
        )

    def before_write(self, m: Machine, instruction: Instruction, lanes: Array) -> None:
        if self.active and instruction.has("release", "acq_rel") and _wide_enough(instruction):
            m.clocks.fence(lanes)

    def after_write(
        self, m: Machine, instruction: Instruction, place: Place, *, modify: bool
    ) -> None:
        if not self.active or not _wide_enough(instruction):
            return
        for offset, lane in zip(place.offsets.tolist(), place.lanes.tolist(), strict=True):
            m.clocks.publish(lane, (place.space, offset), modify=modify)

    def after_read(self, m: Machine, instruction: Instruction, place: Place) -> None:
        if not self.active or not _wide_enough(instruction):
            return
        for offset, lane in zip(place.offsets.tolist(), place.lanes.tolist(), strict=True):
            m.clocks.observe(lane, (place.space, offset))
        if instruction.has("acquire", "acq_rel"):
            m.clocks.fence(place.lanes)

    def modify(self, m: Machine, instruction: Instruction, place: Place, order: Array) -> None:
        """Read-modify-writes, one lane after the other in this order."""
        if not self.active or not _wide_enough(instruction):
            return
        offsets, lanes = place.offsets.tolist(), place.lanes.tolist()
        for k in order.tolist():
            variable = (place.space, offsets[k])
            m.clocks.observe(lanes[k], variable)
            m.clocks.publish(lanes[k], variable, modify=True)
        if instruction.has("acquire", "acq_rel"):
            m.clocks.fence(place.lanes)


@decodes("fence", "membar")
def _fence(instruction: Instruction) -> Operation:
    if not _is_fence(instruction):
        return lambda m, index: None

    def run(m: Machine, index: Index) -> None:
        m.clocks.fence(m.all_lanes if index is None else index)

    return run


@decodes("prefetch", "prefetchu", "griddepcontrol", "nanosleep", "applypriority")
def _no_effect(instruction: Instruction) -> Operation:
    return lambda m, index: None
