"""A kernel's instructions, decoded once for all launches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from . import atomics, copies, decode_convert, decode_integer, decode_moves  # noqa: F401 (decoders)
from .barriers import BlockBarrier
from .operation import DECODERS, Operation
from .ordering import Ordering
from .syntax import Instruction, Kernel, Symbol, UnsupportedPtxError
from .warps import WARP_DECODERS, WarpWaits, is_warp_operation

MEMORY_OPCODES = ("ld", "ldu", "st", "atom", "red", "cp")


@dataclass(slots=True)
class Step:
    instruction: Instruction
    guard: int | None  # slot of a predicate
    negated: bool
    operation: Operation | None  # None: control
    name: str
    touches_memory: bool
    target: int = -1  # of a branch
    warp: WarpWaits | None = None
    barrier: BlockBarrier | None = None


class Program:
    def __init__(self, kernel: Kernel) -> None:
        self.steps = [self._step(kernel, instruction) for instruction in kernel.code]
        self.labels = np.zeros(len(kernel.code) + 1, bool)
        self.labels[list(kernel.labels.values())] = True
        self.warp_waits = [step.warp for step in self.steps if step.warp]
        self.block_barriers = {
            step.instruction.index: step.barrier for step in self.steps if step.barrier
        }
        self.ordering = Ordering(kernel)

    def _step(self, kernel: Kernel, i: Instruction) -> Step:
        if not isinstance(i.decoded, Step):
            i.decoded = _decode(i)
        if i.opcode != "bra":
            return i.decoded
        (target,) = i.operands
        if not isinstance(target, Symbol) or target.name not in kernel.labels:
            raise UnsupportedPtxError(i.text)
        # not kept: kernels that share the instruction may have the label elsewhere
        return dataclasses.replace(i.decoded, target=kernel.labels[target.name])


def _decode(i: Instruction) -> Step:
    guard = i.guard.slot if i.guard else None
    reads_parameter = i.has("param") and i.opcode == "ld"
    memory = i.opcode in MEMORY_OPCODES and not reads_parameter
    step = Step(i, guard, i.guard_negated, None, i.name, memory)
    if is_warp_operation(i):
        step.warp = WarpWaits(i, WARP_DECODERS[i.opcode](i))
    elif i.opcode in ("bar", "barrier"):
        if not i.has("cluster"):
            step.barrier = BlockBarrier(i)
        elif not i.has("arrive", "wait"):
            raise UnsupportedPtxError(i.text)
    elif i.opcode not in ("bra", "ret", "exit", "trap"):
        decoder = DECODERS.get(i.opcode)
        if decoder is None:
            raise UnsupportedPtxError(f"instruction {i.text!r}")
        try:
            step.operation = decoder(i)
        except (ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise UnsupportedPtxError(f"instruction {i.text!r}: {error}") from error
    return step
