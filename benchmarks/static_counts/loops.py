"""The loops of one kernel, counted from its SASS: what a thread does in one iteration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sass import SassInstruction, SassKernel
from sass.disassembly import BRANCH_TARGET
from sass.figures import LOADS, SPILLS, STORES, moved, narrow
from sass.hardware import pipe_of


@dataclass(frozen=True)
class Loop:
    """Counts for one thread and one iteration; accesses are those of device memory."""

    instructions: int
    loaded: int
    """bytes"""
    stored: int
    """bytes"""
    narrow: int
    """accesses of less than 16 bytes"""
    shared_loads: int
    exponentials: int
    spills: int
    """accesses of local memory"""
    pipes: dict[str, int]
    """instructions by the pipe that they take (sass/hardware.py)"""


def loops_of(kernel: SassKernel) -> list[Loop]:
    """Its innermost loops that access device memory, in the order of the code."""
    position = {id(instruction): at for at, instruction in enumerate(kernel.code)}
    loops = []
    for code in kernel.innermost_loops():
        path = steady_path(code, position[id(code[0])], kernel.labels)
        if any(i.base in (*LOADS, *STORES) for i in path):
            loops.append(_count(path))
    return loops


class _Path(NamedTuple):
    """Of some path from an instruction to the end of the loop. Larger is better."""

    wide_bytes: int
    few_narrow: int  # minus the narrow accesses
    few_instructions: int  # minus the instructions
    next: int  # index of the following instruction


def steady_path(
    code: Sequence[SassInstruction], first: int, labels: dict[str, int]
) -> list[SassInstruction]:
    """One way through the loop: of those that move most bytes in accesses of 16 bytes, the one with
    the fewest narrow ones, then the fewest instructions. Branches over what only the end of a row,
    an unaligned row or the label's column needs are taken. `first`: index of code[0] in the kernel.
    """
    best: list[_Path] = [_Path(0, 0, 0, len(code))] * (len(code) + 1)
    for at in range(len(code) - 1, -1, -1):
        ways = [at + 1]
        if code[at].base == "BRA" and (target := BRANCH_TARGET.search(code[at].operands)):
            to = labels[target[1]] - first
            # Backward: the end of the loop. Beyond the end: it is left, for the last time.
            if at < to < len(code):
                ways.append(to)
        rest = max(((best[way], way) for way in ways), key=lambda pair: pair[0][:3])
        ahead, way = rest
        one = [code[at]]
        wide = moved(one, (*LOADS, *STORES)) if not narrow(one) else 0
        best[at] = _Path(
            ahead.wide_bytes + wide,
            ahead.few_narrow - narrow(one),
            ahead.few_instructions - 1,
            way,
        )
    path, at = [], 0
    while at < len(code):
        path.append(code[at])
        at = best[at].next
    return path


def _count(path: Sequence[SassInstruction]) -> Loop:
    return Loop(
        instructions=len(path),
        loaded=moved(path, LOADS),
        stored=moved(path, STORES),
        narrow=narrow(path),
        shared_loads=sum(i.base == "LDS" for i in path),
        exponentials=sum(i.opcode.startswith("MUFU.EX2") for i in path),
        spills=sum(i.base in SPILLS for i in path),
        pipes=dict(Counter(pipe_of(i.opcode) for i in path)),
    )
