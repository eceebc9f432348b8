"""Arithmetic opcodes (which floating-point and integer instructions share), bits and shifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import integer_ops as ops
from .decode_float import decode_float
from .operation import Array, Operation, decodes, elementwise
from .scalar_types import bits_of, is_signed
from .syntax import Immediate, Instruction, UnsupportedPtxError


@decodes("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "neg", "abs", "copysign",
         "ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh")  # fmt: skip
def _arithmetic(instruction: Instruction) -> Operation:
    operation = decode_float(instruction)
    if operation is not None:
        return operation
    if instruction.opcode in ("mul", "mad"):
        return _multiply(instruction)
    function = INTEGER.get(instruction.opcode)
    if function is None:
        raise UnsupportedPtxError(instruction.text)
    instruction.only()  # no .cc (carry), .sat or .relu
    type_ = instruction.type
    sources = [(operand, type_) for operand in instruction.operands[1:]]
    return elementwise(instruction.operands[0], sources, function)


INTEGER: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "div": ops.quotient,
    "rem": ops.remainder,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}


def _multiply(instruction: Instruction) -> Operation:
    instruction.only("lo", "hi", "wide")
    type_ = instruction.type
    wide = f"{type_[0]}{2 * bits_of(type_)}" if instruction.has("wide") else type_
    if instruction.has("wide"):
        dtype = np.dtype(f"{'i' if is_signed(type_) else 'u'}{bits_of(wide) // 8}")

        def product(a: Array, b: Array) -> Array:
            return a.astype(dtype) * b.astype(dtype)
    elif instruction.has("hi"):
        product = ops.high_half
    else:
        product = np.multiply  # type: ignore[assignment]
    sources = [(operand, type_) for operand in instruction.operands[1:3]]
    if instruction.opcode == "mul":
        return elementwise(instruction.operands[0], sources, product)
    sources.append((instruction.operands[3], wide))
    return elementwise(instruction.operands[0], sources, lambda a, b, c: product(a, b) + c)


@decodes("and", "or", "xor", "not")
def _logic(instruction: Instruction) -> Operation:
    instruction.only()
    functions: dict[str, Callable[..., Array]] = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": np.bitwise_not,
    }
    sources = [(operand, instruction.type) for operand in instruction.operands[1:]]
    return elementwise(instruction.operands[0], sources, functions[instruction.opcode])


@decodes("shl", "shr")
def _shift(instruction: Instruction) -> Operation:
    instruction.only()
    target, value, count = instruction.operands
    function = ops.shift_left if instruction.opcode == "shl" else ops.shift_right
    return elementwise(target, [(value, instruction.type), (count, "u32")], function)


@decodes("shf")
def _funnel_shift(instruction: Instruction) -> Operation:
    instruction.only("l", "r", "wrap", "clamp")
    target, *sources = instruction.operands
    left, wrap = instruction.has("l"), instruction.has("wrap")

    def shift(low: Array, high: Array, count: Array) -> Array:
        return ops.funnel_shift(low, high, count, left=left, wrap=wrap)

    return elementwise(target, [(operand, "u32") for operand in sources], shift)


@decodes("lop3")
def _logic3(instruction: Instruction) -> Operation:
    instruction.only()
    target, a, b, c, table = instruction.operands
    if not isinstance(table, Immediate) or len(instruction.operands) != 5:
        raise UnsupportedPtxError(instruction.text)
    bits = table.bits
    return elementwise(
        target, [(a, "u32"), (b, "u32"), (c, "u32")], lambda x, y, z: ops.logic3(x, y, z, bits)
    )


@decodes("prmt")
def _permute(instruction: Instruction) -> Operation:
    instruction.only()
    target, *sources = instruction.operands
    return elementwise(target, [(operand, "u32") for operand in sources], ops.permute_bytes)


@decodes("bfe")
def _extract(instruction: Instruction) -> Operation:
    instruction.only()
    target, value, start, length = instruction.operands
    sources = [(value, instruction.type), (start, "u32"), (length, "u32")]
    return elementwise(target, sources, ops.extract_field)


@decodes("bfi")
def _insert(instruction: Instruction) -> Operation:
    instruction.only()
    target, field, into, start, length = instruction.operands
    type_ = instruction.type
    sources = [(field, type_), (into, type_), (start, "u32"), (length, "u32")]
    return elementwise(target, sources, ops.insert_field)


@decodes("popc", "clz", "brev", "bfind")
def _count_bits(instruction: Instruction) -> Operation:
    instruction.only("shiftamt")
    bits = bits_of(instruction.type)
    if instruction.opcode == "bfind" and is_signed(instruction.type):
        raise UnsupportedPtxError(instruction.text)

    def leading_zeros(x: Array) -> Array:
        return (bits - 1 - ops.highest_bit(x)).astype(np.uint32)

    def shift_amount(x: Array) -> Array:
        highest = ops.highest_bit(x)
        return np.where(highest < 0, -1, bits - 1 - highest).astype(np.int32)

    functions: dict[str, Callable[[Array], Array]] = {
        "popc": ops.population,
        "clz": leading_zeros,
        "brev": ops.reverse_bits,
        "bfind": shift_amount if instruction.has("shiftamt") else ops.highest_bit,
    }
    target, source = instruction.operands
    return elementwise(target, [(source, f"u{bits}")], functions[instruction.opcode])
