"""PTX's scalar types as numpy types. Registers hold bits; instructions give them a meaning."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {32: np.float32, 64: np.float64}

# bf16, f16 and packed pairs have no numpy type with the right arithmetic (half_ops.py).
HALF_TYPES = ("f16", "bf16", "f16x2", "bf16x2")
TYPE = re.compile(r"(?:pred|[busf]\d+(?:x2)?|bf16(?:x2)?|tf32)$")


@cache
def bits_of(type_: str) -> int:
    """Width of a register of this type; a predicate counts as one bit."""
    if type_ == "pred":
        return 1
    if type_.endswith("x2"):
        return 2 * bits_of(type_.removesuffix("x2"))
    found = re.fullmatch(r"(?:bf|[busf])(\d+)", type_)
    if found is None:
        raise NotImplementedError(f"PTX type .{type_}")
    return int(found.group(1))


@cache
def dtype_of(type_: str) -> np.dtype:
    """How numpy must read the bits of an operand of this type."""
    if type_ == "pred":
        return np.dtype(np.bool_)
    bits = bits_of(type_)
    if is_float(type_):
        return np.dtype(FLOAT[bits])
    if type_[0] == "s":
        return np.dtype(SIGNED[bits])
    if bits not in UNSIGNED:
        raise NotImplementedError(f"PTX type .{type_}")
    return np.dtype(UNSIGNED[bits])


def is_float(type_: str) -> bool:
    return type_ in ("f32", "f64")


def is_signed(type_: str) -> bool:
    return type_[0] == "s"


def unsigned_of(dtype: np.dtype) -> np.dtype:
    return np.dtype(UNSIGNED[dtype.itemsize * 8])
