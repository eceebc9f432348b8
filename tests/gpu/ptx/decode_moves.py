"""Moves, comparisons and selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import half_ops
from .float_ops import flush
from .operation import (
    Array,
    Index,
    Operation,
    Writer,
    decodes,
    elementwise,
    parts,
    reader,
    writer,
)
from .scalar_types import UNSIGNED, bits_of, is_float
from .syntax import Instruction, UnsupportedPtxError, Vector

if TYPE_CHECKING:
    from .machine import Machine

COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
COMBINATIONS: dict[str, Callable[..., Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


@decodes("mov")
def _move(instruction: Instruction) -> Operation:
    instruction.only()
    target, source = instruction.operands
    type_ = instruction.type
    if isinstance(source, Vector):
        return _pack(target, source, type_)
    if isinstance(target, Vector):
        return _unpack(target, source, type_)
    return elementwise(target, [(source, type_)], lambda x: x)


def _pack(target: object, source: Vector, type_: str) -> Operation:
    write = writer(target)  # type: ignore[arg-type]
    width = bits_of(type_) // len(source.parts)
    whole = UNSIGNED[bits_of(type_)]
    readers = [reader(part, f"u{width}") for part in source.parts]

    def run(m: Machine, index: Index) -> None:
        value = np.zeros(1, whole)
        for position, read in enumerate(readers):
            value = value | (read(m, index).astype(whole) << whole(width * position))
        write(m, index, value)

    return run


def _unpack(target: Vector, source: object, type_: str) -> Operation:
    width = bits_of(type_) // len(target.parts)
    whole, part = UNSIGNED[bits_of(type_)], UNSIGNED[width]
    read = reader(source, f"u{bits_of(type_)}")  # type: ignore[arg-type]
    writers = [writer(p) for p in target.parts]

    def run(m: Machine, index: Index) -> None:
        value = read(m, index)
        for position, write in enumerate(writers):
            write(m, index, (value >> whole(width * position)).astype(part))

    return run


@decodes("setp", "set")
def _compare(instruction: Instruction) -> Operation:
    comparison = instruction.modifiers[0]
    combination = instruction.one_of(COMBINATIONS)
    instruction.only(comparison, "ftz", *COMBINATIONS)
    type_ = instruction.type
    compare = _comparison(comparison, type_, instruction)
    targets = [writer(part) for part in parts(instruction.operands[0])]
    if instruction.opcode == "set":
        targets = [_truth_writer(instruction)]
    half = type_ in ("f16", "bf16")
    read_a, read_b = (reader(o, "u16" if half else type_) for o in instruction.operands[1:3])
    if combination is not None:
        read_c = reader(instruction.operands[3], "pred")
        combine = COMBINATIONS[combination]

    def run(m: Machine, index: Index) -> None:
        result = compare(read_a(m, index), read_b(m, index))
        opposite = ~result if len(targets) > 1 else result
        if combination is not None:
            other = read_c(m, index)
            result, opposite = combine(result, other), combine(opposite, other)
        targets[0](m, index, result)
        if len(targets) > 1:
            targets[1](m, index, opposite)

    return run


def _comparison(name: str, type_: str, instruction: Instruction) -> Callable[..., Array]:
    if type_ in ("f16", "bf16"):
        plain = _comparison(name, "f32", instruction)
        return lambda a, b: plain(half_ops.widen(a, type_), half_ops.widen(b, type_))
    if not is_float(type_):
        return COMPARISONS[name]
    if name == "num":
        compare: Callable[..., Array] = lambda a, b: ~(np.isnan(a) | np.isnan(b))  # noqa: E731
    elif name == "nan":
        compare = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
    elif name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):  # true where unordered
        ordered = COMPARISONS[name[:-1]]
        compare = lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)  # noqa: E731
    elif name == "ne":
        compare = lambda a, b: (a < b) | (a > b)  # noqa: E731
    else:
        compare = COMPARISONS[name]
    if instruction.has("ftz"):
        return lambda a, b: compare(flush(a), flush(b))
    return compare


def _truth_writer(instruction: Instruction) -> Writer:
    """set writes 1.0 or all ones for true."""
    write, type_ = writer(instruction.operands[0]), instruction.types[0]
    if type_ not in ("f32", "u32", "s32"):
        raise UnsupportedPtxError(instruction.text)
    true = np.float32(1) if type_ == "f32" else np.uint32(0xFFFFFFFF)
    return lambda m, index, value: write(m, index, np.where(value, true, true.dtype.type(0)))


@decodes("selp")
def _select(instruction: Instruction) -> Operation:
    instruction.only()
    target, a, b, condition = instruction.operands
    type_ = f"b{bits_of(instruction.type)}"
    return elementwise(
        target,
        [(condition, "pred"), (a, type_), (b, type_)],
        lambda c, x, y: np.asarray(np.where(c, x, y)),
    )


@decodes("testp")
def _test_property(instruction: Instruction) -> Operation:
    functions: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
    }
    name = instruction.modifiers[0]
    if name not in functions:
        raise UnsupportedPtxError(instruction.text)
    target, source = instruction.operands
    return elementwise(target, [(source, instruction.type)], functions[name])
