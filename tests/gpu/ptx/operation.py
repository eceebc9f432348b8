"""From operands to numpy arrays and back, and the table of decoders.

A register's value is an array that nobody changes: one element where all threads agree by
construction (parameters, constants and what follows from them), else one element per lane. `index`
names the lanes that execute; None means all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .scalar_types import UNSIGNED, bits_of, dtype_of, is_float, unsigned_of
from .syntax import (
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Symbol,
    UnsupportedPtxError,
    Vector,
)

if TYPE_CHECKING:
    from .machine import Machine

Array = np.ndarray
Index = np.ndarray | None
Reader = Callable[["Machine", Index], Array]
Writer = Callable[["Machine", Index, Array], None]
Operation = Callable[["Machine", Index], None]
Decoder = Callable[[Instruction], Operation]

DECODERS: dict[str, Decoder] = {}


def decodes(*opcodes: str) -> Callable[[Decoder], Decoder]:
    """Registers the decoder of these opcodes."""

    def register(decoder: Decoder) -> Decoder:
        for opcode in opcodes:
            DECODERS[opcode] = decoder
        return decoder

    return register


def gather(values: Array, index: Index) -> Array:
    """The values of the executing lanes; a value that all lanes share stays as it is."""
    if index is None or values.shape[0] == 1:
        return values
    return values.take(index)


def per_lane(values: Array, count: int) -> Array:
    return np.broadcast_to(values, (count,)) if values.shape[0] == 1 else values


def immediate(operand: Immediate, type_: str) -> Array:
    """An immediate as an array of one element. An integer for a float type is converted."""
    if type_ == "pred":
        return np.array([operand.bits != 0])
    if operand.kind != "int":
        width = 32 if operand.kind == "f32" else 64
        value = np.array([operand.bits], UNSIGNED[width])
        return (
            value.view(dtype_of(operand.kind)).astype(dtype_of(type_)) if is_float(type_) else value
        )
    if is_float(type_):
        return np.array([operand.bits], dtype_of(type_))
    bits = bits_of(type_)
    return np.array([operand.bits & ((1 << bits) - 1)], UNSIGNED[bits]).view(dtype_of(type_))


def reader(operand: Operand, type_: str) -> Reader:
    """Reads an operand as this type. A wider or narrower register is cut or zero-extended."""
    dtype = dtype_of(type_)
    if isinstance(operand, Register):
        slot = operand.slot
        if type_ == "pred" or operand.type == "pred":
            if type_ != operand.type:
                raise UnsupportedPtxError(f"a predicate and .{type_} mixed")
            return lambda m, index: gather(m.registers[slot], index)
        if bits_of(operand.type) == bits_of(type_):
            return lambda m, index: gather(m.registers[slot], index).view(dtype)
        unsigned = unsigned_of(dtype)
        return lambda m, index: gather(m.registers[slot], index).astype(unsigned).view(dtype)
    if isinstance(operand, Immediate):
        constant = immediate(operand, type_)
        return lambda m, index: constant
    if isinstance(operand, Negated):
        slot = operand.register.slot
        return lambda m, index: ~gather(m.registers[slot], index)
    if isinstance(operand, Symbol):
        name = operand.name
        return lambda m, index: gather(m.symbol(name), index).astype(dtype)
    raise UnsupportedPtxError(f"operand {operand} read as .{type_}")


def writer(operand: Operand) -> Writer:
    """Writes a register; a value of another width is extended as its dtype says, or cut."""
    if operand is None:
        return lambda m, index, value: None
    if not isinstance(operand, Register):
        raise UnsupportedPtxError(f"operand {operand} as a destination")
    slot = operand.slot
    if operand.type == "pred":

        def write_predicate(m: Machine, index: Index, value: Array) -> None:
            m.registers[slot] = value if index is None else _merged(m, slot, index, value)

        return write_predicate
    dtype = np.dtype(UNSIGNED[bits_of(operand.type)])

    def write(m: Machine, index: Index, value: Array) -> None:
        if value.dtype.itemsize == dtype.itemsize:
            value = value.view(dtype)
        else:
            if value.dtype.kind == "f":
                value = value.view(unsigned_of(value.dtype))
            value = value.astype(dtype)
        m.registers[slot] = value if index is None else _merged(m, slot, index, value)

    return write


def _merged(m: Machine, slot: int, index: Array, value: Array) -> Array:
    old = m.registers[slot]
    new = np.full(m.lanes, old[0], old.dtype) if old.shape[0] == 1 else old.copy()
    new[index] = value
    return new


def elementwise(
    target: Operand, sources: Sequence[tuple[Operand, str]], function: Callable[..., Array]
) -> Operation:
    """target = function(*sources), lane by lane."""
    write = writer(target)
    readers = [reader(operand, type_) for operand, type_ in sources]
    if len(readers) == 1:
        (read_a,) = readers
        return lambda m, index: write(m, index, function(read_a(m, index)))
    if len(readers) == 2:
        read_a, read_b = readers
        return lambda m, index: write(m, index, function(read_a(m, index), read_b(m, index)))
    if len(readers) == 3:
        read_a, read_b, read_c = readers
        return lambda m, index: write(
            m, index, function(read_a(m, index), read_b(m, index), read_c(m, index))
        )
    return lambda m, index: write(m, index, function(*(read(m, index) for read in readers)))


def parts(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)
