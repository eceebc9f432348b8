"""Our operations' kernels, compiled as setup.py does, and which of their loops a loss runs through:
for bfloat16 rows that are aligned, and so many tokens that every block takes whole rows.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from compiler import Compiler, find_tool
from sass import SassKernel, disassemble
from vocab_kernels.build import build

from static_counts.kernels import KernelCount, Pass
from static_counts.loops import Loop, loops_of
from static_counts.trace import OurOperation

# As in csrc/launch_plan.h and csrc/cuda/scale_rows.cu.
THREADS = 256
COLUMNS = 16  # of a thread in one iteration
ROUND = THREADS * COLUMNS
SCALED_COLUMNS = 32
RESERVED_SHARED = 2048
SHARED_OF_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
SOURCES = ("vocab_stats_bf16", "gradient", "fused", "fdiv", "scale_rows")
PER_TOKEN = ("merge_stats", "merge_loss")
"""Operations that read no logits."""


class OurKernels:
    """Of one architecture."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def of(self, operation: OurOperation, num_columns: int) -> list[KernelCount]:
        """In the order in which they run."""
        if operation.name in PER_TOKEN:
            return []
        if num_columns < ROUND:
            raise ValueError(f"expected at least {ROUND} columns, got {num_columns}")
        arguments = operation.arguments
        match operation.name.rstrip("_"):
            case "vocab_stats":
                return [self._statistics(arguments, num_columns)]
            case "vocab_stats_backward":
                return [self._gradient(arguments, num_columns)]
            case "vocab_fdiv":
                kernel = self._named(f"11fdiv_kernel.*E{arguments['kind']}E")
                return [_count("vocab_fdiv", kernel, [_sweep(kernel, [num_columns])])]
            case "vocab_fdiv_backward":
                # The other one is for rows with a gradient of the statistics, too.
                kernel = self._named(f"20fdiv_gradient_kernel.*E{arguments['kind']}ELb0E")
                return [_count("vocab_fdiv_gradient", kernel, [_sweep(kernel, [num_columns])])]
            case "fused_loss":
                if (widths := self._cluster(num_columns)) is not None:
                    return [self._fused(arguments, widths)]
                # As ops_cuda.cpp does with a row that no cluster can hold.
                return [
                    self._statistics(arguments, num_columns),
                    self._gradient(arguments, num_columns),
                ]
            case "scale_rows":
                # The kernel leaves rows alone whose scale is 1.
                is_needed = bool((arguments["scale"] != 1).any())
                return [self._scale_rows(num_columns)] if is_needed else []
        raise ValueError(f"no kernel is known for the operation {operation.name}")

    def _statistics(self, arguments: dict[str, Any], num_columns: int) -> KernelCount:
        kernel = self._instance("vocab_stats_kernel", arguments["features"])
        return _count(_with_set("vocab_stats", kernel), kernel, [_sweep(kernel, [num_columns])])

    def _gradient(self, arguments: dict[str, Any], num_columns: int) -> KernelCount:
        kernel = self._named("21vocab_gradient_kernel")
        tensors = 1 if arguments["teacher_logits"] is None else 2
        loaded = 2 * COLUMNS * tensors
        return _count("vocab_gradient", kernel, [_sweep(kernel, [num_columns], loaded)])

    def _fused(self, arguments: dict[str, Any], widths: list[int]) -> KernelCount:
        kernel = self._instance("fused_kernel", arguments["features"])
        writing = min(
            (loop for loop in loops_of(kernel) if loop.stored and loop.shared_loads),
            key=lambda loop: loop.instructions,
        )
        rounds = sum(_divide_up(width, ROUND) for width in widths)
        passes = [
            _sweep(kernel, widths),
            Pass(writing, COLUMNS, rounds * THREADS * writing.instructions),
        ]
        return _count(_with_set("fused", kernel), kernel, passes)

    def _scale_rows(self, num_columns: int) -> KernelCount:
        kernel = self._named("scale_rows_kernel")
        loops = [loop for loop in loops_of(kernel) if loop.loaded and not loop.narrow]
        four, one = sorted(loops, key=lambda loop: loop.loaded, reverse=True)
        blocks, left = divmod(num_columns, THREADS * SCALED_COLUMNS)
        rest = _divide_up(left, THREADS * SCALED_COLUMNS // 4)
        instructions = (blocks * four.instructions + rest * one.instructions) * THREADS
        return _count("scale_rows", kernel, [Pass(four, SCALED_COLUMNS, instructions)])

    def _cluster(self, num_columns: int) -> list[int] | None:
        """The columns of each block that shares a row (plan_fused_launch)."""
        of_sm = SHARED_OF_SM[self._capability]
        for limit in (of_sm // 2, of_sm - 1024):
            for cluster in (1, 2, 4, 8) if self._capability >= 90 else (1,):
                width = _divide_up(_divide_up(num_columns, cluster), ROUND) * ROUND
                if 2 * 2 * width + RESERVED_SHARED <= limit:
                    starts = range(0, num_columns, width)
                    return [min(width, num_columns - start) for start in starts]
        return None

    def _named(self, pattern: str) -> SassKernel:
        found = [kernel for kernel in _shipped(self._capability) if re.search(pattern, kernel.name)]
        if len(found) != 1:
            raise LookupError(f"{pattern} is the name of {len(found)} kernels, expected one")
        return found[0]

    def _instance(self, name: str, features: int) -> SassKernel:
        """Of those that compute these features, the cheapest: what the launcher takes, too."""
        fitting = []
        for kernel in _shipped(self._capability):
            found = re.search(name + r"I13__nv_bfloat16Lj(\d+)E", kernel.name)
            if found is None:
                continue
            instance = int(found[1])
            reads_teacher = features & 1 == instance & 1
            if features & ~instance == 0 and (reads_teacher or name == "fused_kernel"):
                fitting.append(kernel)
        return min(fitting, key=lambda kernel: _sweep(kernel, [ROUND]).loop.instructions)


@cache
def _shipped(capability: int) -> list[SassKernel]:
    """nvcc runs where its results are not in build/kernels."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise FileNotFoundError("nvcc is not on PATH, in CUDA_HOME or in site-packages")
    with tempfile.TemporaryDirectory() as scratch:
        cubins = build(Compiler(nvcc, Path(scratch))).cubins(ARCHITECTURES[capability])
    return [
        kernel
        for cubin in cubins
        if cubin.name.startswith(SOURCES)
        for kernel in disassemble(cubin)
        if "bfloat16" in kernel.name
    ]


def _sweep(kernel: SassKernel, widths: Sequence[int], loaded: int | None = None) -> Pass:
    """One loop takes whole rounds of a block, another one what is left of its part of the row.
    Where a kernel has more of them, for other objectives or rows that are not finite, these are the
    cheapest. loaded: bytes of one iteration; None where all read the same."""
    loops = [loop for loop in loops_of(kernel) if loop.loaded and loaded in (None, loop.loaded)]
    whole, rest = sorted(loops, key=lambda loop: loop.instructions)[:2]
    rounds = sum(width // ROUND for width in widths)
    ends = sum(width % ROUND > 0 for width in widths)
    instructions = (rounds * whole.instructions + ends * rest.instructions) * THREADS
    return Pass(_checked(kernel, whole), COLUMNS, instructions)


def _checked(kernel: SassKernel, loop: Loop) -> Loop:
    if loop.narrow or loop.loaded not in (2 * COLUMNS, 4 * COLUMNS):
        raise ValueError(
            f"{kernel.name}: not the loop over whole vectors that was expected: {loop}"
        )
    return loop


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _with_set(name: str, kernel: SassKernel) -> str:
    found = re.search(r"Lj(\d+)E", kernel.name)
    return f"{name} ({found[1]})" if found else name


def _count(name: str, kernel: SassKernel, passes: list[Pass]) -> KernelCount:
    return KernelCount.make(name, kernel, THREADS, passes)
