"""bf16 and f16 values as 16-bit patterns: conversion, and arithmetic rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .float_ops import add_to_odd, maximum, minimum, nan_maximum, nan_minimum

Array = np.ndarray
U16, U32 = np.uint16, np.uint32
NAN = U16(0x7FFF)  # the one NaN that conversions to either format give


def widen(bits: Array, format_: str) -> Array:
    """16-bit patterns to float32, exactly."""
    if format_ == "bf16":
        return (bits.astype(U32) << U32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def narrow(x: Array, format_: str, mode: str = "rn") -> Array:
    """float32 to 16-bit patterns, to nearest even or toward zero."""
    if format_ == "bf16":
        bits = x.view(U32)
        if mode == "rn":
            bits = bits + (U32(0x7FFF) + ((bits >> U32(16)) & U32(1)))
        result = (bits >> U32(16)).astype(U16)
        nan = np.isnan(x)
        return np.where(nan, NAN, result) if nan.any() else result
    nearest = x.astype(np.float16)
    if mode == "rz":
        beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
        nearest = np.where(beyond, np.nextafter(nearest, np.float16(0)), nearest)
    return _canonical_nan(nearest)


def _canonical_nan(x: Array) -> Array:
    nan = np.isnan(x)
    return np.where(nan, NAN, x.view(U16)) if nan.any() else x.view(U16)


def narrow_odd(exact: Array, format_: str) -> Array:
    """A double rounded to odd (or exact) to 16-bit patterns, to nearest even."""
    if format_ == "f16":
        return _canonical_nan(exact.astype(np.float16))
    single = exact.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.int32)
    toward_zero = np.abs(back) > np.abs(exact)
    bits = np.where(toward_zero & np.isfinite(exact), bits - 1, bits)
    inexact = bits.astype(np.int32).view(np.float32).astype(np.float64) != exact
    sticky = inexact & np.isfinite(exact)
    return narrow((bits | sticky).astype(np.int32).view(np.float32), "bf16")


def _fused(a: Array, b: Array, c: Array, format_: str) -> Array:
    product = widen(a, format_).astype(np.float64) * widen(b, format_)
    return narrow_odd(add_to_odd(product, widen(c, format_).astype(np.float64)), format_)


def _one(a: Array, format_: str) -> Array:
    return np.full_like(a, 0x3F80 if format_ == "bf16" else 0x3C00)


def _exact(function: Callable[..., Array]) -> Callable[..., Array]:
    """An operation whose result is one of its operands, on widened values."""

    def apply(*operands: Any) -> Array:
        *patterns, format_ = operands
        return narrow(function(*(widen(p, format_) for p in patterns)), format_)

    return apply


# Each takes patterns and the format, and returns patterns.
ARITHMETIC: dict[str, Callable[..., Array]] = {
    "add": lambda a, b, f: _fused(a, _one(a, f), b, f),
    "sub": lambda a, b, f: _fused(a, _one(a, f), b ^ U16(0x8000), f),
    # -0 as addend, so that a product of -0 keeps its sign
    "mul": lambda a, b, f: _fused(a, b, np.full_like(a, 0x8000), f),
    "fma": _fused,
    "neg": lambda a, f: a ^ U16(0x8000),
    "abs": lambda a, f: a & U16(0x7FFF),
    "min": _exact(minimum),
    "max": _exact(maximum),
    "min.NaN": _exact(nan_minimum),
    "max.NaN": _exact(nan_maximum),
}


def unpack(bits: Array) -> tuple[Array, Array]:
    """A packed pair to its low and its high half."""
    return (bits & U32(0xFFFF)).astype(U16), (bits >> U32(16)).astype(U16)


def pack(low: Array, high: Array) -> Array:
    return low.astype(U32) | (high.astype(U32) << U32(16))
