"""Kernels with one instruction changed: a test set that notices none of it proves too little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import ptx
from ptx.syntax import Immediate, Instruction, Kernel, Operand, Vector


@dataclass(frozen=True)
class Mutant:
    original: ptx.Module
    code: Kernel
    instruction: Instruction
    change: str  # what becomes of the instruction
    new: Instruction

    @property
    def kernel(self) -> str:
        return self.code.name

    @property
    def module(self) -> ptx.Module:
        """Shares all other instructions, and what the executor made of them."""
        code = list(self.code.code)
        code[self.instruction.index] = self.new
        changed = dataclasses.replace(self.code, code=code)
        kernels = {**self.original.kernels, self.kernel: changed}
        return dataclasses.replace(self.original, kernels=kernels)

    @property
    def where(self) -> str:
        """Its source line and opcode."""
        return self.original.describe(self.instruction)

    def __str__(self) -> str:
        return f"{self.kernel}: {self.where}: {self.change}"


@dataclass
class Outcome:
    possible: int = 0
    tried: int = 0
    survivors: list[Mutant] = field(default_factory=list)


FLIPPED = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq", "lo": "ls",
           "ls": "lo", "hi": "hs", "hs": "hi", "ltu": "leu", "leu": "ltu", "gtu": "geu",
           "geu": "gtu", "equ": "neu", "neu": "equ"}  # fmt: skip
SWAPPED = {"min": "max", "max": "min", "add": "sub", "sub": "add"}
# operations that become a copy of their first source
COPIED = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "and", "or", "xor", "shl", "shr", "shf",
          "neg", "abs", "prmt", "lop3")  # fmt: skip
REMOVED = ("bar", "barrier", "fence", "membar", "st", "red")


def mutants(module: ptx.Module, kernels: Iterable[str]) -> Iterator[Mutant]:
    """Every mutant of these kernels (names as in Module.kernel)."""
    for name in kernels:
        kernel = module.kernel(name)
        for instruction in kernel.code:
            for change, new in _changes(instruction):
                yield Mutant(module, kernel, instruction, change, new)


def surviving(
    text: str,
    kernels: Iterable[str],
    survives: Callable[[ptx.Module], bool],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Try mutants, at most `limit` of them chosen at random. survives: whether the test set, run on
    this module, notices nothing."""
    every = list(mutants(ptx.parse(text), kernels))
    chosen = every
    if limit is not None and limit < len(every):
        picks = np.random.default_rng(seed).choice(len(every), limit, replace=False)
        chosen = [every[k] for k in sorted(picks)]
    outcome = Outcome(len(every), len(chosen))
    for mutant in chosen:
        if survives(mutant.module):
            outcome.survivors.append(mutant)
    return outcome


def _changes(i: Instruction) -> Iterator[tuple[str, Instruction]]:
    """(description, changed instruction)."""
    if i.opcode in REMOVED or (i.opcode == "cp" and i.has("wait_group", "wait_all")):
        # arriving without waiting is a mistake of another kind: cluster barriers go by halves
        # something without effect in its place, so that all others keep theirs
        yield "removed", _with(i, opcode="nanosleep", modifiers=("u32",), operands=())
    if i.opcode in ("setp", "set") and i.modifiers[0] in FLIPPED:
        new = FLIPPED[i.modifiers[0]]
        yield f"{i.modifiers[0]} -> {new}", _with(i, modifiers=(new, *i.modifiers[1:]))
    # x + 0 and x - 0 are the same number: the compiler leaves such additions where a sum begins
    adds_nothing = i.opcode in ("add", "sub", "fma", "mad") and _is_zero(i.operands[-1])
    if i.opcode in SWAPPED and not i.has("cc") and not adds_nothing:
        yield f"-> {SWAPPED[i.opcode]}", _with(i, opcode=SWAPPED[i.opcode])
    if i.opcode in ("fma", "mad") and not adds_nothing:
        # without the addend; a product of integers has no rounding mode to drop
        yield "-> mul", _with(i, opcode="mul", operands=i.operands[:3])
    if i.opcode in COPIED and not _is_half(i):
        yield "-> mov", _copy(i, i.operands[0], i.operands[1])
    if i.opcode == "mul" and not i.has("wide", "hi") and not _is_half(i):
        yield "-> mov", _copy(i, i.operands[0], i.operands[1])
    if i.opcode == "shfl":
        target = i.operands[0].parts[0] if isinstance(i.operands[0], Vector) else i.operands[0]
        yield "-> mov", _copy(i, target, i.operands[1])
    if i.opcode == "selp":
        target, a, b, condition = i.operands
        yield "operands swapped", _with(i, operands=(target, b, a, condition))
    if i.opcode == "cvt" and i.has("rn") and i.types[0] in ("bf16", "bf16x2", "f16", "f16x2"):
        rounded = tuple("rz" if m == "rn" else m for m in i.modifiers)
        yield "rn -> rz", _with(i, modifiers=rounded)


def _is_zero(operand: Operand) -> bool:
    return isinstance(operand, Immediate) and operand.bits == 0


def _is_half(i: Instruction) -> bool:
    return i.type in ("bf16", "bf16x2", "f16", "f16x2")


def _copy(i: Instruction, target: Operand, source: Operand) -> Instruction:
    return _with(i, opcode="mov", modifiers=(i.type,), operands=(target, source))


def _with(i: Instruction, **changes: object) -> Instruction:
    return dataclasses.replace(i, **changes)  # type: ignore[arg-type]
