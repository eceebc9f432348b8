"""Integer and bit operations on unsigned arrays, as the PTX manual defines them."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
U32, U64 = np.uint32, np.uint64


def high_half(a: Array, b: Array) -> Array:
    """The upper half of the product, signed or unsigned as the operands are."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    x, y = a.astype(U64), b.astype(U64)
    mask, half = U64(0xFFFFFFFF), U64(32)
    low = (x & mask) * (y & mask)
    middle = (x >> half) * (y & mask) + (low >> half)
    carry = (x & mask) * (y >> half) + (middle & mask)
    high = (x >> half) * (y >> half) + (middle >> half) + (carry >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(a.dtype)


def quotient(a: Array, b: Array) -> Array:
    """Truncated division. Dividing by zero gives all ones, as hardware does; PTX leaves it open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        result = a // safe
    else:
        result = a // safe
        result = result + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, np.array(-1).astype(a.dtype), result).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b))).astype(a.dtype)


def shift_left(x: Array, count: Array) -> Array:
    bits = x.dtype.itemsize * 8
    shifted = x << np.minimum(count, U32(bits - 1)).astype(x.dtype)
    return np.where(count >= bits, x.dtype.type(0), shifted)


def shift_right(x: Array, count: Array) -> Array:
    """Arithmetic for signed x; a count beyond the width empties it."""
    bits = x.dtype.itemsize * 8
    shifted = x >> np.minimum(count, U32(bits - 1)).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(count >= bits, x.dtype.type(0), shifted)


def funnel_shift(low: Array, high: Array, count: Array, *, left: bool, wrap: bool) -> Array:
    count = count & U32(31) if wrap else np.minimum(count, U32(32))
    both = (high.astype(U64) << U64(32)) | low
    shifted = (both << count.astype(U64)) >> U64(32) if left else both >> count.astype(U64)
    return (shifted & U64(0xFFFFFFFF)).astype(U32)


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit k of the table is the result for (a, b, c) = the bits of k."""
    result: Array = np.zeros(1, U32)
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | term
    return result


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt in its default mode; bit 3 of a selector spreads the sign of the byte."""
    both = (b.astype(U64) << U64(32)) | a
    result: Array = np.zeros(1, U32)
    for position in range(4):
        select = (selector >> U32(4 * position)) & U32(15)
        byte = (both >> ((select & U32(7)) * U32(8)).astype(U64)) & U64(0xFF)
        sign = np.where(byte & U64(0x80), U64(0xFF), U64(0))
        byte = np.where(select & U32(8), sign, byte)
        result = result | (byte.astype(U32) << U32(8 * position))
    return result


def bits_mask(length: Array, dtype: np.dtype) -> Array:
    """`length` low bits set; length at most the width."""
    bits = dtype.itemsize * 8
    partial = (dtype.type(1) << np.minimum(length, U32(bits - 1)).astype(dtype)) - dtype.type(1)
    return np.where(length >= bits, np.array(-1).astype(dtype), partial)


def extract_field(x: Array, start: Array, length: Array) -> Array:
    """bfe: bits beyond the field or the top of x are 0, or the field's top bit if signed."""
    signed = x.dtype.kind == "i"
    bits = x.dtype.itemsize * 8
    start, length = start & U32(255), np.minimum(length & U32(255), U32(bits))
    mask = bits_mask(length, x.dtype)
    field = shift_right(x, start) & mask
    if not signed:
        return field
    top = np.minimum(start + length - U32(1), U32(bits - 1))
    negative = (length > 0) & ((shift_right(x, top) & 1) != 0)
    return np.where(negative, field | ~mask, field)


def insert_field(field: Array, into: Array, start: Array, length: Array) -> Array:
    dtype = into.dtype
    bits = dtype.itemsize * 8
    start, length = start & U32(255), np.minimum(length & U32(255), U32(bits))
    shift = np.minimum(start, U32(bits - 1)).astype(dtype)
    mask = np.where(start >= bits, dtype.type(0), bits_mask(length, dtype) << shift)
    return (into & ~mask) | ((field << shift) & mask)


def _bits(x: Array) -> Array:
    """(n, width) of zeros and ones, lowest bit first."""
    bytes_ = np.ascontiguousarray(x).view(np.uint8).reshape(-1, x.dtype.itemsize)
    return np.unpackbits(bytes_, axis=1, bitorder="little")


def population(x: Array) -> Array:
    return _bits(x).sum(1, dtype=U32)


def highest_bit(x: Array) -> Array:
    """Index of the highest set bit; -1 where there is none."""
    bits = _bits(x)
    return np.where(bits.any(1), bits.shape[1] - 1 - bits[:, ::-1].argmax(1), -1).astype(np.int32)


def reverse_bits(x: Array) -> Array:
    return np.packbits(_bits(x)[:, ::-1], axis=1, bitorder="little").view(x.dtype).ravel()
