"""Counts of a kernel for one row of logits, whoever made it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sass import SassKernel, disassemble

from static_counts.loops import Loop, loops_of
from static_counts.trace import TritonLaunch


@dataclass(frozen=True)
class Pass:
    """One way of a kernel over a row."""

    loop: Loop
    columns: int
    """that a thread takes in one iteration"""
    instructions_of_row: float
    """of all threads together, with what the end of the row costs in addition"""

    @property
    def loaded(self) -> float:
        """Bytes for each column."""
        return self.loop.loaded / self.columns

    @property
    def stored(self) -> float:
        """Bytes for each column."""
        return self.loop.stored / self.columns


@dataclass(frozen=True)
class KernelCount:
    name: str
    target: str
    threads: int
    """of a block"""
    registers: int
    stack: int
    """bytes for each thread: spilled registers and local arrays"""
    passes: list[Pass]

    @classmethod
    def make(cls, name: str, kernel: SassKernel, threads: int, passes: list[Pass]) -> KernelCount:
        resources = kernel.resources
        stack = resources.stack + resources.local
        return cls(name, kernel.target, threads, resources.registers, stack, passes)

    @property
    def bytes(self) -> float:
        """Of device memory, loaded and stored, for each column."""
        return sum(part.loaded + part.stored for part in self.passes)


def of_triton(launch: TritonLaunch, num_columns: int) -> KernelCount:
    """A program takes a row, block_size columns at a time, the last ones masked. It passes through
    all loops that load; those that only store are for ignored rows."""
    if launch.block_size is None:
        raise ValueError(f"{launch.name}: how many columns an iteration takes is not known")
    with tempfile.TemporaryDirectory() as scratch:
        cubin = Path(scratch) / "kernel.cubin"
        cubin.write_bytes(launch.cubin)
        (kernel,) = disassemble(cubin)
    threads = 32 * launch.num_warps
    iterations = -(-num_columns // launch.block_size)
    passes = [
        Pass(loop, launch.block_size // threads, loop.instructions * iterations * threads)
        for loop in loops_of(kernel)
        if loop.loaded
    ]
    return KernelCount.make(launch.name, kernel, threads, passes)
