"""IEEE arithmetic as a GPU does it: fused multiply-add, rounding modes, flushing, min and max."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

Array = np.ndarray
U32 = np.uint32
SIGN = U32(0x80000000)
SMALLEST_NORMAL = 2.0**-126
DISCARDED = np.int64(0x1FFFFFFF)  # mantissa bits that single precision drops from double
HALFWAY = np.int64(0x10000000)


def flush(x: Array) -> Array:
    """.ftz: single-precision subnormals become zeros of the same sign."""
    bits = x.view(U32)
    subnormal = (bits << U32(1)) - U32(1) < U32(0x00FFFFFF)
    if not subnormal.any():
        return x
    return np.where(subnormal, bits & SIGN, bits).view(np.float32)


def add_to_odd(product: Array, c: Array) -> Array:
    """product + c in double, rounded to odd: one more rounding to a format of at most 51 bits is
    then the rounding of the exact sum (Boldo and Melquiond 2008)."""
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    fix = np.isfinite(total) & (error != 0) & ((bits & 1) == 0) & (total != 0)
    away = (error > 0) == (total > 0)
    return np.where(fix, np.where(away, bits + 1, bits - 1), bits).view(np.float64)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once, to nearest even."""
    product = a.astype(np.float64) * b  # exact: 48 bits
    total = product + c
    result = total.astype(np.float32)
    # Rounding twice only differs where the first rounding made a tie, or in the subnormal range.
    doubtful = (total.view(np.int64) & DISCARDED) == HALFWAY
    small = np.abs(total) < SMALLEST_NORMAL
    if small.any():
        doubtful |= small & (total != 0)
    if doubtful.any():
        lanes = np.flatnonzero(doubtful)
        sources = (np.broadcast_to(product, total.shape)[lanes], np.broadcast_to(c, total.shape))
        odd = add_to_odd(sources[0], sources[1][lanes].astype(np.float64))
        result[lanes] = odd.astype(np.float32)
    return result


def to_single(exact: Array, mode: str) -> Array:
    """A double that was rounded to odd, to single precision in rounding mode rn, rz, rm or rp."""
    nearest = exact.astype(np.float32)
    if mode == "rn":
        return nearest
    value = nearest.astype(np.float64)
    down = np.nextafter(nearest, np.float32(-np.inf))
    up = np.nextafter(nearest, np.float32(np.inf))
    if mode == "rm":
        return np.where(value > exact, down, nearest)
    if mode == "rp":
        return np.where(value < exact, up, nearest)
    toward_zero = np.where(nearest > 0, down, up)
    return np.where(np.abs(value) > np.abs(exact), toward_zero, nearest)


def fma32_directed(a: Array, b: Array, c: Array, mode: str) -> Array:
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    exact = add_to_odd(product, addend)
    result = to_single(exact, mode)
    if mode == "rm":  # a sum of zero is -0 here, unless both terms are +0
        negative = np.signbit(product) | np.signbit(addend)
        result = np.where((exact == 0) & negative, np.float32(-0.0), result)
    return result


def mul32_directed(a: Array, b: Array, mode: str) -> Array:
    return to_single(a.astype(np.float64) * b, mode)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in double, rounded once (Boldo and Melquiond 2008, figure 5)."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high = a * b
    low = _product_error(a, b, high)
    t_high, t_low = _two_sum(c, low)
    v_high, v_low = _two_sum(high, t_high)
    result = v_high + add_to_odd(t_low, v_low)

    def unsafe(x: Array) -> Array:  # the error terms could overflow or underflow
        exponent = np.frexp(x)[1]
        return (x != 0) & ((exponent > 500) | (exponent < -450))

    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    plain = (a == 0) | (b == 0) | ~finite
    result = np.where(plain, high + c, result)
    for lane in np.flatnonzero(finite & (unsafe(a) | unsafe(b) | unsafe(c))):
        exact = Fraction(float(a[lane])) * Fraction(float(b[lane])) + Fraction(float(c[lane]))
        result[lane] = _nearest_double(exact) if exact else high[lane] + c[lane]
    return result


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _product_error(a: Array, b: Array, product: Array) -> Array:
    def split(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0  # 2^27 + 1, Veltkamp
        high = scaled - (scaled - x)
        return high, x - high

    a_high, a_low = split(a)
    b_high, b_low = split(b)
    return a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _nearest_double(exact: Fraction) -> float:
    try:
        return exact.numerator / exact.denominator  # Python rounds a quotient of integers correctly
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def minimum(a: Array, b: Array) -> Array:
    """A NaN gives way to a number, and -0 is less than +0."""
    return _extremum(a, b, np.minimum, np.fmin, np.bitwise_or)


def maximum(a: Array, b: Array) -> Array:
    return _extremum(a, b, np.maximum, np.fmax, np.bitwise_and)


def _extremum(a: Array, b: Array, fast: np.ufunc, ignoring_nan: np.ufunc, zeros: np.ufunc) -> Array:
    result = fast(a, b)  # propagates NaN, several times faster than fmin
    if np.isnan(result).any():
        result = ignoring_nan(a, b)
    both_zero = result == 0
    if both_zero.any():
        both_zero &= a == b
        unsigned = U32 if result.dtype.itemsize == 4 else np.uint64
        signed_zero = zeros(a.view(unsigned), b.view(unsigned)).view(result.dtype)
        result = np.where(both_zero, signed_zero, result)
    return result


def nan_minimum(a: Array, b: Array) -> Array:
    return _extremum(a, b, np.minimum, np.minimum, np.bitwise_or)


def nan_maximum(a: Array, b: Array) -> Array:
    return _extremum(a, b, np.maximum, np.maximum, np.bitwise_and)


def saturate(x: Array) -> Array:
    """.sat: into [+0, 1]; NaN becomes +0."""
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))
