"""Floating-point instructions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from . import float_ops, half_ops
from .approximate import HALF, SINGLE, Approximation
from .operation import Array, Index, Operation, elementwise, reader, writer
from .scalar_types import HALF_TYPES, is_float
from .syntax import Instruction, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

DIRECTED = ("rz", "rm", "rp")


def decode_float(instruction: Instruction) -> Operation | None:
    """The operation, or None if this is not floating-point arithmetic."""
    type_ = instruction.type
    if type_ in HALF_TYPES:
        return _half(instruction)
    if type_ == "f32x2":
        return _pair_of_singles(instruction)
    if not is_float(type_):
        return None
    if instruction.opcode in APPROXIMATE and instruction.has("approx", "full"):
        return _approximate(instruction)
    function = _exact_function(instruction)
    if function is None:
        return None
    sources = [(operand, type_) for operand in instruction.operands[1:]]
    return elementwise(instruction.operands[0], sources, _with_modes(instruction, function))


def _with_modes(instruction: Instruction, function: Callable[..., Array]) -> Callable[..., Array]:
    """Adds .ftz (operands and result) and .sat."""
    if instruction.has("sat"):
        function = _after(function, float_ops.saturate)
    if instruction.has("ftz"):
        if instruction.type == "f64":
            raise UnsupportedPtxError(instruction.text)
        function = _flushing(function)
    return function


def _pair_of_singles(instruction: Instruction) -> Operation:
    """f32x2 (sm_100): two singles in 64 bits, each on its own."""
    exact = _exact_function(instruction)
    if exact is None or instruction.opcode not in ("add", "sub", "mul", "fma"):
        raise UnsupportedPtxError(instruction.text)
    function = _with_modes(instruction, exact)

    def both(*pairs: Array) -> Array:
        singles = [pair.view(np.float32).reshape(-1, 2) for pair in pairs]
        halves = [function(*(np.ascontiguousarray(s[:, k]) for s in singles)) for k in (0, 1)]
        return np.stack(halves, axis=1).view(np.uint64).ravel()

    sources = [(operand, "u64") for operand in instruction.operands[1:]]
    return elementwise(instruction.operands[0], sources, both)


def _after(function: Callable[..., Array], then: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda *x: then(function(*x))


def _flushing(function: Callable[..., Array]) -> Callable[..., Array]:
    flush = float_ops.flush
    return lambda *x: flush(function(*(flush(y) for y in x)))


def _exact_function(instruction: Instruction) -> Callable[..., Array] | None:
    opcode, double = instruction.opcode, instruction.type == "f64"
    mode = instruction.one_of(DIRECTED)
    if opcode in ("add", "sub", "mul", "fma", "mad"):
        instruction.only("rn", "rz", "rm", "rp", "ftz", "sat")
        if mode:
            if double:
                raise UnsupportedPtxError(instruction.text)
            return _directed(opcode, mode)
        if opcode in ("fma", "mad"):
            return float_ops.fma64 if double else float_ops.fma32
        plain: dict[str, Callable[..., Array]] = {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
        }
        return plain[opcode]
    if opcode in ("div", "rcp", "sqrt"):
        # a double quotient or root rounds to the right single: 53 >= 2 * 24 + 2 bits
        instruction.only("rn", "ftz")
        rounded: dict[str, Callable[..., Array]] = {
            "div": _quotient,
            "rcp": _reciprocal,
            "sqrt": _root,
        }
        return rounded[opcode]
    if opcode in ("min", "max"):
        instruction.only("ftz", "NaN")
        nan = instruction.has("NaN")
        smaller = float_ops.nan_minimum if nan else float_ops.minimum
        larger = float_ops.nan_maximum if nan else float_ops.maximum
        pick = smaller if opcode == "min" else larger
        return lambda *x: reduce(pick, x)  # sm_100 has a form with three operands
    if opcode in ("neg", "abs", "copysign"):
        instruction.only("ftz")
        simple: dict[str, Callable[..., Array]] = {
            "neg": np.negative,
            "abs": np.abs,
            "copysign": lambda sign, magnitude: np.copysign(magnitude, sign),
        }
        return simple[opcode]
    return None


def _quotient(a: Array, b: Array) -> Array:
    return (a.astype(np.float64) / b).astype(a.dtype)


def _reciprocal(a: Array) -> Array:
    return (1.0 / a.astype(np.float64)).astype(a.dtype)


def _root(a: Array) -> Array:
    return np.sqrt(a.astype(np.float64)).astype(a.dtype)


def _directed(opcode: str, mode: str) -> Callable[..., Array]:
    one = np.ones(1, np.float32)
    fma = float_ops.fma32_directed
    functions: dict[str, Callable[..., Array]] = {
        "add": lambda a, b: fma(a, one, b, mode),
        "sub": lambda a, b: fma(a, one, -b, mode),
        "mul": lambda a, b: float_ops.mul32_directed(a, b, mode),
        "fma": lambda a, b, c: fma(a, b, c, mode),
    }
    functions["mad"] = functions["fma"]
    return functions[opcode]


APPROXIMATE = {name.split(".")[0] for name in SINGLE}


def _approximate(instruction: Instruction) -> Operation:
    instruction.only("approx", "full", "ftz")
    if instruction.type != "f32":
        raise UnsupportedPtxError(instruction.text)
    name = instruction.opcode
    if name == "div":
        name += ".full" if instruction.has("full") else ".approx"
    approximation = SINGLE[name]
    write = writer(instruction.operands[0])
    readers = [reader(operand, "f32") for operand in instruction.operands[1:]]
    flush = float_ops.flush if instruction.has("ftz") else _unchanged

    def run(m: Machine, index: Index) -> None:
        operands = [flush(read(m, index)) for read in readers]
        value = approximation.evaluate(m.noise, m.rng, *operands)
        write(m, index, flush(value.astype(np.float32)))

    return run


def _unchanged(x: Array) -> Array:
    return x


def _half(instruction: Instruction) -> Operation:
    """f16, bf16 and their packed pairs, each half on its own."""
    type_ = instruction.type
    packed = type_.endswith("x2")
    format_ = type_.removesuffix("x2")
    opcode = instruction.opcode
    if (opcode, format_) in HALF:
        instruction.only("approx", "ftz")
        return _half_approximate(instruction, HALF[opcode, format_], format_, packed)
    instruction.only("rn", "NaN")
    name = opcode + (".NaN" if instruction.has("NaN") else "")
    if name not in half_ops.ARITHMETIC:
        raise UnsupportedPtxError(instruction.text)
    function = half_ops.ARITHMETIC[name]
    sources = [(operand, "u32" if packed else "u16") for operand in instruction.operands[1:]]

    def both_halves(*pairs: Array) -> Array:
        halves = [half_ops.unpack(pair) for pair in pairs]
        low = function(*(h[0] for h in halves), format_)
        high = function(*(h[1] for h in halves), format_)
        return half_ops.pack(low, high)

    single: Callable[..., Array] = lambda *x: function(*x, format_)  # noqa: E731
    return elementwise(instruction.operands[0], sources, both_halves if packed else single)


def _half_approximate(
    instruction: Instruction, approximation: Approximation, format_: str, packed: bool
) -> Operation:
    write = writer(instruction.operands[0])
    read = reader(instruction.operands[1], "u32" if packed else "u16")

    def one(m: Machine, bits: Array) -> Array:
        value = approximation.evaluate(m.noise, m.rng, half_ops.widen(bits, format_))
        return half_ops.narrow(value.astype(np.float32), format_)

    def run(m: Machine, index: Index) -> None:
        bits = read(m, index)
        if packed:
            low, high = half_ops.unpack(bits)
            write(m, index, half_ops.pack(one(m, low), one(m, high)))
        else:
            write(m, index, one(m, bits))

    return run
