"""Figures of a kernel's main loop, each for one logit pair (one student and one teacher logit)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .disassembly import SassInstruction, SassKernel
from .hardware import GPUS, RATES, RESERVED_SHARED, SLOTS, Gpu, pipe_of

LOADS = ("LDG", "LDGSTS")
STORES = ("STG",)
SPILLS = ("LDL", "STL")


@dataclass(frozen=True)
class Roofline:
    """Of one GPU: how many pairs a clock each resource allows an SM."""

    blocks_per_sm: int
    occupancy: float
    memory: float
    pipes: dict[str, float]
    bytes_in_flight: float  # of loads, by all threads of an SM
    bytes_needed: float

    @property
    def tightest(self) -> str:
        return min(self.pipes, key=lambda pipe: self.pipes[pipe])

    @property
    def margin(self) -> float:
        """Above 1, memory is the bound: the tightest pipe could do that much more."""
        return self.pipes[self.tightest] / self.memory


@dataclass(frozen=True)
class Figures:
    kernel: str
    target: str
    registers: int
    stack: int
    shared: int
    spills: int  # instructions of the whole kernel that access local memory
    pairs: float  # by one thread in one iteration
    narrow: int  # accesses of device memory in the loop of less than 16 bytes
    loaded_bytes: float  # for each pair, like all that follow
    stored_bytes: float
    instructions: float
    opcodes: dict[str, float] = field(repr=False)
    pipes: dict[str, float] = field(default_factory=dict)
    rooflines: dict[str, Roofline] = field(default_factory=dict)


def moved(code: Sequence[SassInstruction], bases: Sequence[str]) -> int:
    return sum(i.width for i in code if i.base in bases)


def narrow(code: Sequence[SassInstruction]) -> int:
    """Accesses of device memory of less than 16 bytes."""
    return sum(i.width < 16 for i in code if i.base in (*LOADS, *STORES))


def main_loop(
    kernel: SassKernel, bases: Sequence[str] = (*LOADS, *STORES)
) -> list[SassInstruction]:
    """The innermost loop that moves most bytes of device memory by these opcodes; one without
    narrow accesses where there is one, for rows that are not aligned have a loop of their own."""
    loops = kernel.innermost_loops()
    loop = max(loops, key=lambda code: (not narrow(code), moved(code, bases)), default=[])
    if not moved(loop, bases):
        raise ValueError(f"{kernel.name}: no loop has any of {', '.join(bases)}")
    return loop


def measure(
    kernel: SassKernel,
    *,
    threads: int,
    pair_bytes: int,
    counted: str = "loads",
    dynamic_shared: int = 0,
) -> Figures:
    """threads: of a block. pair_bytes: how many bytes the loop loads (counted="stores": stores) for
    each logit pair, from which the pairs of one iteration follow."""
    bases = STORES if counted == "stores" else LOADS
    loop = main_loop(kernel, bases)
    pairs = moved(loop, bases) / pair_bytes
    opcodes = Counter(i.base if i.base != "MUFU" else i.opcode for i in loop)
    slots: Counter[str] = Counter()
    for i in loop:
        slots[pipe_of(i.opcode)] += SLOTS.get(i.base, 1)
    figures = Figures(
        kernel.name,
        kernel.target,
        kernel.resources.registers,
        kernel.resources.stack + kernel.resources.local,
        kernel.resources.shared,
        sum(i.base in SPILLS for i in kernel.code),
        pairs,
        narrow(loop),
        moved(loop, LOADS) / pairs,
        moved(loop, STORES) / pairs,
        len(loop) / pairs,
        {opcode: n / pairs for opcode, n in opcodes.items()},
        {pipe: n / pairs for pipe, n in slots.items()},
    )
    for name, gpu in GPUS.items():
        if gpu.capability == kernel.capability:
            figures.rooflines[name] = _roofline(gpu, figures, threads, dynamic_shared)
    return figures


def _roofline(gpu: Gpu, figures: Figures, threads: int, dynamic_shared: int) -> Roofline:
    reserved = RESERVED_SHARED if gpu.capability < 90 else 0  # cuobjdump counts it from 90 on
    shared = figures.shared + dynamic_shared + reserved
    blocks = gpu.blocks_per_sm(threads, figures.registers, shared)
    rates = RATES[gpu.capability]
    pipes = {pipe: rates[pipe] / n for pipe, n in figures.pipes.items() if pipe in rates}
    pipes["issue"] = rates["issue"] / figures.instructions
    return Roofline(
        blocks,
        blocks * threads / gpu.threads,
        gpu.bytes_per_clock / (figures.loaded_bytes + figures.stored_bytes),
        pipes,
        blocks * threads * figures.loaded_bytes * figures.pairs,
        gpu.bytes_in_flight_needed(),
    )
