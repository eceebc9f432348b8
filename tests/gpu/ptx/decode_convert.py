"""cvt: between integers, floats and the 16-bit float formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import half_ops
from .float_ops import flush, saturate
from .operation import Array, Operation, decodes, elementwise
from .scalar_types import bits_of, dtype_of, is_float
from .syntax import Instruction, UnsupportedPtxError

TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rzi": np.trunc,
    "rni": np.rint,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@decodes("cvt")
def _convert(instruction: Instruction) -> Operation:
    instruction.only("rn", "rz", "rm", "rp", *TO_INTEGER, "ftz", "sat", "relu")
    target_type, source_type = instruction.types
    target, *sources = instruction.operands
    if target_type in ("bf16x2", "f16x2"):
        return _pair(instruction, target_type.removesuffix("x2"))
    function = _conversion(instruction, target_type, source_type)
    read_as = f"u{bits_of(source_type)}" if source_type in ("f16", "bf16") else source_type
    return elementwise(target, [(sources[0], read_as)], function)


def _pair(instruction: Instruction, format_: str) -> Operation:
    """Two singles to a packed pair; the first operand becomes the high half."""
    target, high, low = instruction.operands
    narrow = _narrow(instruction, format_)
    return elementwise(
        target, [(low, "f32"), (high, "f32")], lambda a, b: half_ops.pack(narrow(a), narrow(b))
    )


def _narrow(instruction: Instruction, format_: str) -> Callable[[Array], Array]:
    mode = instruction.one_of(("rn", "rz"))
    if mode is None or instruction.has("sat", "rm", "rp"):
        raise UnsupportedPtxError(instruction.text)
    ftz, relu = instruction.has("ftz"), instruction.has("relu")

    def narrow(x: Array) -> Array:
        x = flush(x) if ftz else x
        if relu:
            x = np.where(x < 0, np.float32(0), x)
        return half_ops.narrow(x, format_, mode)

    return narrow


def _conversion(instruction: Instruction, to: str, of: str) -> Callable[[Array], Array]:
    """Arrays of type `of` (patterns for the half formats) to arrays of type `to`."""
    if to in ("f16", "bf16"):
        if of == "f32":
            return _narrow(instruction, to)
        if of == to:
            raise UnsupportedPtxError(instruction.text)
        if of in ("f16", "bf16", "f64") or instruction.one_of(("rz", "rm", "rp", "sat", "relu")):
            raise UnsupportedPtxError(instruction.text)
        # an integer of up to 53 bits is exact in double
        if bits_of(of) == 64:
            raise UnsupportedPtxError(instruction.text)
        return lambda x: half_ops.narrow_odd(x.astype(np.float64), to)
    if of in ("f16", "bf16"):
        if to == "f32" and not instruction.has("sat"):
            return lambda x: half_ops.widen(x, of)
        if not is_float(to):
            integer = _float_to_integer(instruction, to)
            return lambda x: integer(half_ops.widen(x, of))
        raise UnsupportedPtxError(instruction.text)
    if is_float(of) and not is_float(to):
        return _float_to_integer(instruction, to)
    if is_float(to):
        return _to_float(instruction, to, of)
    return _integer_to_integer(instruction, to)


def _float_to_integer(instruction: Instruction, to: str) -> Callable[[Array], Array]:
    name = instruction.one_of(TO_INTEGER)
    if name is None:
        raise UnsupportedPtxError(instruction.text)
    rounding, ftz = TO_INTEGER[name], instruction.has("ftz")
    dtype = dtype_of(to)
    limits = np.iinfo(dtype)
    bits = 8 * dtype.itemsize

    def convert(x: Array) -> Array:
        """Out of range goes to the nearest end. NaN goes to 0 between 32-bit types, else to the
        integer with only the top bit set."""
        if ftz and x.dtype == np.float32:
            x = flush(x)
        value = rounding(x).astype(np.longdouble)  # holds every 64-bit integer
        nan = np.isnan(value)
        result = np.clip(np.where(nan, 0, value), limits.min, limits.max).astype(dtype)
        if nan.any() and (bits == 64 or x.dtype == np.float64):
            top = np.array(1 << (bits - 1), f"u{dtype.itemsize}").view(dtype)
            result = np.where(nan, top, result)
        return result

    return convert


def _to_float(instruction: Instruction, to: str, of: str) -> Callable[[Array], Array]:
    dtype = dtype_of(to)
    if instruction.has("rz", "rm", "rp"):
        raise UnsupportedPtxError(instruction.text)
    rounding = TO_INTEGER.get(instruction.one_of(TO_INTEGER) or "")
    ftz, saturates = instruction.has("ftz"), instruction.has("sat")

    def convert(x: Array) -> Array:
        if ftz and x.dtype == np.float32:
            x = flush(x)
        if rounding is not None:
            x = rounding(x)
        value = x.astype(dtype)
        if ftz and dtype == np.float32:
            value = flush(value)
        if saturates:
            value = saturate(value)
        return value

    return convert


def _integer_to_integer(instruction: Instruction, to: str) -> Callable[[Array], Array]:
    dtype = dtype_of(to)
    if not instruction.has("sat"):
        return lambda x: x.astype(dtype)
    limits = np.iinfo(dtype)

    def saturating(x: Array) -> Array:
        lowest = max(limits.min, np.iinfo(x.dtype).min)
        highest = min(limits.max, np.iinfo(x.dtype).max)
        return np.clip(x, x.dtype.type(lowest), x.dtype.type(highest)).astype(dtype)

    return saturating
