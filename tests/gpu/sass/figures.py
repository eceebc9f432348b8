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
    title: str  # of the kernel, or of the loop where it has several
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


def loop_by_cost(kernel: SassKernel, place: int, count: int) -> list[SassInstruction]:
    """Number `place` (from 1) of the `count` loops that compute whole, aligned vectors of a
    gradient, in rising order of their instructions. Line information does not tell them apart: in
    nvcc 13.0's code for sm_100a it names the wrong call of a function that was inlined twice."""
    loops = [
        code
        for code in kernel.innermost_loops()
        if moved(code, STORES) and not narrow(code) and any(i.base == "MUFU" for i in code)
    ]
    if len(loops) != count:
        raise ValueError(f"{kernel.name}: expected {count} loops for a gradient, got {len(loops)}")
    return sorted(loops, key=lambda code: len(code) / moved(code, STORES))[place - 1]


def measure(
    kernel: SassKernel,
    *,
    threads: int,
    pair_bytes: int,
    counted: str = "loads",
    dynamic_shared: int = 0,
    loop_place: tuple[int, int] | None = None,
    both_loops: bool = False,
    title: str = "",
) -> Figures:
    """threads: of a block. pair_bytes: how many bytes the loop loads (counted="stores": stores) for
    each logit pair, from which the pairs of one iteration follow; 0: no loop counts. loop_place:
    those of loop_by_cost, instead of the main loop, or (both_loops) after it: an iteration of
    either takes the same pairs."""
    bases = STORES if counted == "stores" else LOADS
    loop: list[SassInstruction] = []
    if pair_bytes:
        if both_loops or not loop_place:
            loop += main_loop(kernel, bases)
        if loop_place:
            loop += loop_by_cost(kernel, *loop_place)
    pairs = moved(loop, bases) / pair_bytes if pair_bytes else 1.0
    opcodes = Counter(i.base if i.base != "MUFU" else i.opcode for i in loop)
    slots: Counter[str] = Counter()
    for i in loop:
        slots[pipe_of(i.opcode)] += SLOTS.get(i.base, 1)
    figures = Figures(
        kernel.name,
        title,
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
        if pair_bytes and gpu.capability == kernel.capability:
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
