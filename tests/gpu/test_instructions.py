"""Instructions that nvcc seldom writes, and the corners of those it does."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import ptx
import pytest
from bfloat16 import from_bfloat16, to_bfloat16
from handwritten import evaluate, kernel
from ptx.approximate import SINGLE

RNG = np.random.default_rng(0)
WORDS = np.concatenate(
    [RNG.integers(0, 2**32, 500), [0, 1, 2**31, 2**32 - 1, 0x80, 0x7F80FF01]]
).astype(np.uint32)
SMALL = RNG.integers(0, 70, len(WORDS)).astype(np.uint32)
LENGTHS = RNG.integers(0, 40, len(WORDS)).astype(np.uint32)


def python(function, *columns: np.ndarray) -> list[int]:  # type: ignore[no-untyped-def]
    return [function(*(int(x) for x in row)) for row in zip(*columns, strict=True)]


def field(x: int, start: int, length: int, signed: bool) -> int:
    """bfe.32, as the manual's pseudocode has it."""
    bits = []
    top = x >> 31 if signed else 0
    last = min(start + length - 1, 31)
    sign = (x >> last & 1) if signed and length else 0
    for k in range(32):
        inside = k < length
        beyond = start + k > 31
        bits.append((top if beyond else x >> (start + k) & 1) if inside else sign)
    return sum(bit << k for k, bit in enumerate(bits))


@pytest.mark.parametrize("signed", [False, True])
def test_bfe(signed: bool) -> None:
    body = f"bfe.{'s' if signed else 'u'}32 %r3, %r4, %r5, %r6;"
    got = evaluate(body, [WORDS, SMALL, LENGTHS], np.uint32)
    expected = python(lambda x, s, n: field(x, s, n, signed), WORDS, SMALL, LENGTHS)
    np.testing.assert_array_equal(got, expected)


def test_bfi() -> None:
    def insert(x: int, into: int, start: int, length: int) -> int:
        for k in range(length):
            if start + k < 32:
                into = into & ~(1 << (start + k)) | (x >> k & 1) << (start + k)
        return into

    other = RNG.permutation(WORDS)
    body = "bfi.b32 %r3, %r4, %r5, %r6, %r7;"
    got = evaluate(body, [WORDS, other, SMALL, LENGTHS], np.uint32)
    np.testing.assert_array_equal(got, python(insert, WORDS, other, SMALL, LENGTHS))


def test_prmt_with_signs() -> None:
    def permute(x: int, y: int, selector: int) -> int:
        both = (y << 32 | x).to_bytes(8, "little")
        result = 0
        for k in range(4):
            choice = selector >> 4 * k & 15
            byte = both[choice & 7]
            result |= (255 * (byte >> 7) if choice & 8 else byte) << 8 * k
        return result

    other, selector = RNG.permutation(WORDS), RNG.permutation(WORDS)
    got = evaluate("prmt.b32 %r3, %r4, %r5, %r6;", [WORDS, other, selector], np.uint32)
    np.testing.assert_array_equal(got, python(permute, WORDS, other, selector))


@pytest.mark.parametrize("table", [0x00, 0x96, 0xE8, 0xCA, 0x2B, 0xFF])
def test_lop3(table: int) -> None:
    b, c = RNG.permutation(WORDS), RNG.permutation(WORDS)
    got = evaluate(f"lop3.b32 %r3, %r4, %r5, %r6, {table};", [WORDS, b, c], np.uint32)
    bits = [(x >> np.arange(32)[:, None].astype(np.uint32)) & 1 for x in (WORDS, b, c)]
    row = bits[0] * 4 + bits[1] * 2 + bits[2]
    expected = ((table >> row) & 1).astype(np.int64).T @ (1 << np.arange(32))
    np.testing.assert_array_equal(got, expected)


def test_bfind() -> None:
    got = evaluate("bfind.u32 %r3, %r4;", [WORDS], np.uint32)
    np.testing.assert_array_equal(got, python(lambda x: (x.bit_length() - 1) % 2**32, WORDS))


@pytest.mark.parametrize("shift", ["shl.b64", "shr.u64", "shr.s64"])
def test_shifts_beyond_the_width(shift: str) -> None:
    x = RNG.integers(0, 2**64, len(SMALL), dtype=np.uint64)
    got = evaluate(f"{shift} %d1, %d4, %r5;", [x, SMALL], np.uint64)
    signed = x.astype(np.int64)

    def expected(v: int, n: int) -> int:
        return (v << n if shift == "shl.b64" else v >> n) % 2**64

    values = signed if shift == "shr.s64" else x
    np.testing.assert_array_equal(got, np.array(python(expected, values, SMALL), np.uint64))


FLOATS = np.array(
    [0.0, -0.0, 1e-40, -1e-40, 2.0**-126, 1.0, -1.5, 3e38, np.inf, -np.inf, np.nan, 2.5], np.float32
)
PAIRS = np.array(list(itertools.product(FLOATS, FLOATS)), np.float32).T.copy()


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x)


def assert_same_floats(got: np.ndarray, expected: np.ndarray) -> None:
    """Bits, but any NaN equals any NaN."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_flush_to_zero(operation: str) -> None:
    body = (
        f"mov.b32 %f0, %r4; mov.b32 %f1, %r5; {operation}.ftz.f32 %f2, %f0, %f1; mov.b32 %r3, %f2;"
    )
    functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    with np.errstate(all="ignore"):
        expected = flushed(functions[operation](flushed(PAIRS[0]), flushed(PAIRS[1])))
    assert_same_floats(evaluate(body, list(PAIRS), np.float32), expected)


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("operation", ["min", "max"])
def test_extrema_of_zeros_and_nan(operation: str, nan: str) -> None:
    body = (
        f"mov.b32 %f0, %r4; mov.b32 %f1, %r5; {operation}{nan}.f32 %f2, %f0, %f1; mov.b32 %r3, %f2;"
    )

    def pick(a: float, b: float) -> float:
        if np.isnan(a) or np.isnan(b):
            return np.nan if nan or (np.isnan(a) and np.isnan(b)) else (b if np.isnan(a) else a)
        key = lambda x: (x, not np.signbit(x))  # noqa: E731  (-0 is below +0)
        return (min if operation == "min" else max)((a, b), key=key)

    expected = np.array([pick(a, b) for a, b in PAIRS.T], np.float32)
    assert_same_floats(evaluate(body, list(PAIRS), np.float32), expected)


@pytest.mark.parametrize(
    "comparison", ["eq", "ne", "lt", "ge", "equ", "neu", "ltu", "geu", "num", "nan"]
)
def test_comparisons_with_nan(comparison: str) -> None:
    body = (
        f"mov.b32 %f0, %r4; mov.b32 %f1, %r5; setp.{comparison}.f32 %p0|%p1, %f0, %f1;"
        "selp.u32 %r3, 1, 0, %p0; @%p1 add.u32 %r3, %r3, 2;"
    )
    a, b = PAIRS
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": a != b, "lt": a < b, "ge": a >= b}
    if comparison in ("num", "nan"):
        holds = unordered if comparison == "nan" else ~unordered
    elif comparison.endswith("u"):
        holds = ordered[comparison[:-1]] | unordered
    else:
        holds = ordered[comparison] & ~unordered
    np.testing.assert_array_equal(evaluate(body, [a, b], np.uint32), np.where(holds, 1, 2))


@pytest.mark.parametrize(("type_", "dtype", "of_nan"), [
    ("s32", np.int32, 0), ("u32", np.uint32, 0),
    ("s64", np.int64, -(2**63)), ("u64", np.uint64, 2**63),
])  # fmt: skip
def test_float_to_integer_saturates(type_: str, dtype: type, of_nan: int) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -1.5, 1.5, 2.5, 3e9, -3e9, 1e30], np.float32)
    register = "%r3" if np.dtype(dtype).itemsize == 4 else "%d1"
    body = f"mov.b32 %f0, %r4; cvt.rni.{type_}.f32 {register}, %f0;"
    limits = np.iinfo(dtype)
    exact = [of_nan if np.isnan(v) else limits.max if v == np.inf else limits.min if v == -np.inf
             else min(max(round(float(v)), limits.min), limits.max) for v in x]  # fmt: skip
    np.testing.assert_array_equal(evaluate(body, [x], dtype), np.array(exact, dtype))


def test_integer_conversion_saturates() -> None:
    x = np.array([0, 127, 128, -129, 70000, -70000], np.int32)
    got = evaluate("cvt.sat.s8.s32 %r3, %r4;", [x], np.int32)
    np.testing.assert_array_equal(got, np.clip(x, -128, 127))


def test_double_fma_rounds_once() -> None:
    count = 300
    a, b = RNG.normal(size=(2, count))
    c = -a * b + RNG.normal(size=count) * np.exp2(RNG.integers(-120, 10, count))
    a[:20] *= 1e300
    b[:10] *= 1e-300
    c[20:30] = 5e-324
    got = evaluate("fma.rn.f64 %d1, %d4, %d5, %d6;", [a, b, c], np.float64)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(got, [e.numerator / e.denominator for e in exact])


@pytest.mark.parametrize("flush", ["", ".ftz"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
def test_pairs_of_singles(operation: str, flush: str) -> None:
    """Each of the two as if it were alone, special values too."""
    values = np.stack([np.tile(RNG.permutation(FLOATS), 60) for _ in range(6)]).reshape(3, -1, 2)
    values[:, 200:] = RNG.normal(size=values[:, 200:].shape)
    count = 3 if operation == "fma" else 2
    sources = ", ".join(f"%d{4 + k}" for k in range(count))
    pairs = [np.ascontiguousarray(v).view(np.uint64)[:, 0] for v in values[:count]]
    got = evaluate(f"{operation}.rn{flush}.f32x2 %d1, {sources};", pairs, np.uint64)
    scalars = ", ".join(f"%f{k}" for k in range(count))
    moves = " ".join(f"mov.b32 %f{k}, %r{4 + k};" for k in range(count))
    body = f"{moves} {operation}.rn{flush}.f32 %f3, {scalars}; mov.b32 %r3, %f3;"
    for k in (0, 1):
        words = [np.ascontiguousarray(v[:, k]).view(np.uint32) for v in values[:count]]
        one = np.ascontiguousarray(got[:, None].view(np.float32)[:, k])
        assert_same_floats(one, evaluate(body, words, np.float32))


def round_to(exact: Fraction, mantissa: int, smallest: int) -> float:
    """To nearest even with this many bits, none of them below 2^smallest."""
    if not exact:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - mantissa + 1, smallest)
    return float(round(exact / unit) * unit)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("format_", ["bf16", "f16"])
def test_packed_halves_round_once(format_: str, operation: str) -> None:
    count = 400
    scale = np.exp2(RNG.integers(-20, 20 if format_ == "bf16" else 6, (6, count)))
    values = (RNG.normal(size=(6, count)) * scale).astype(np.float32)
    if format_ == "bf16":
        patterns = to_bfloat16(values)
        exact = from_bfloat16(patterns)
    else:
        exact = values.astype(np.float16)
        patterns = exact.view(np.uint16)
    packed = [
        patterns[k].astype(np.uint32) | patterns[k + 3].astype(np.uint32) << 16 for k in range(3)
    ]
    sources = "%r4, %r5, %r6" if operation == "fma" else "%r4, %r5"
    rounding = ".rn" if operation == "fma" else ""
    got = evaluate(f"{operation}{rounding}.{format_}x2 %r3, {sources};", packed, np.uint32)
    functions = {"add": lambda a, b, c: a + b, "sub": lambda a, b, c: a - b,
                 "mul": lambda a, b, c: a * b, "fma": lambda a, b, c: a * b + c}  # fmt: skip
    mantissa, smallest = (8, -133) if format_ == "bf16" else (11, -24)
    for half in (0, 1):
        bits = (got >> np.uint32(16 * half)).astype(np.uint16)
        result = from_bfloat16(bits) if format_ == "bf16" else bits.view(np.float16)
        rows = zip(*(exact[k + 3 * half] for k in range(3)), strict=True)
        true = [functions[operation](*map(Fraction, map(float, row))) for row in rows]
        expected = [round_to(value, mantissa, smallest) for value in true]
        largest = 65504 if format_ == "f16" else 3.4e38
        finite = np.abs(expected) <= largest
        np.testing.assert_array_equal(result[finite].astype(np.float64), np.array(expected)[finite])


@pytest.mark.parametrize(
    "name", ["ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "div.approx", "div.full"]
)
def test_noise_stays_within_the_documented_error(name: str) -> None:
    x = np.exp(RNG.normal(size=4096)).astype(np.float32)
    if name == "lg2":
        x[:2048] = RNG.uniform(0.5, 2.0, 2048)
    y = np.exp(RNG.normal(size=4096)).astype(np.float32)
    opcode = name if "." in name else f"{name}.approx"
    divisor = ", %f1" if "div" in name else ""
    body = f"mov.b32 %f0, %r4; mov.b32 %f1, %r5; {opcode}.f32 %f2, %f0{divisor}; mov.b32 %r3, %f2;"
    true = SINGLE[name].function(*(v.astype(np.float64) for v in ([x, y] if divisor else [x])))
    bound = np.abs(true) * SINGLE[name].relative
    if name == "lg2":
        bound = np.where((x > 0.5) & (x < 2), SINGLE[name].absolute, bound)
    plain = np.abs(evaluate(body, [x, y], np.float32) - true) / bound
    noisy = np.abs(evaluate(body, [x, y], np.float32, noise=1.0) - true) / bound
    half_ulp = 2.0**-24 / SINGLE[name].relative
    assert plain.max() <= half_ulp * 1.001
    assert plain.max() < noisy.max() <= 1.001
    assert noisy.max() > 0.8  # it does get near the bound


def test_special_values_of_approximations() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1.0], np.float32)

    def run(opcode: str) -> np.ndarray:
        body = f"mov.b32 %f0, %r4; {opcode} %f2, %f0; mov.b32 %r3, %f2;"
        return evaluate(body, [x], np.float32, noise=1.0)

    np.testing.assert_array_equal(run("rcp.approx.f32")[:4], [np.inf, -np.inf, 0, 0])
    np.testing.assert_array_equal(run("ex2.approx.f32")[2:4], [np.inf, 0])
    np.testing.assert_array_equal(run("lg2.approx.f32")[:3], [-np.inf, -np.inf, np.inf])
    np.testing.assert_array_equal(run("rsqrt.approx.f32")[:3], [np.inf, -np.inf, 0])


@pytest.mark.parametrize("body", [
    "cos.approx.f32 %f0, %f1;",
    "add.cc.u32 %r3, %r4, %r5;",
    "dp4a.u32.u32 %r3, %r4, %r5, %r6;",
    "mbarrier.init.shared.b64 [%r4], 1;",
    "cp.async.bulk.commit_group;",
    "cvt.rna.tf32.f32 %r3, %f0;",
    "atom.global.add.noftz.bf16x2 %r3, [%d4], %r5;",
    "bar.sync %r4;",
    "ld.local.u32 %r3, [%d4];",
    "mov.u32 %r3, %clock;",
    "call foo;",
    "max.xorsign.abs.f32 %f0, %f1, %f2;",
    "prmt.b32.f4e %r3, %r4, %r5, %r6;",
])  # fmt: skip
def test_unknown_instruction_is_an_error(body: str) -> None:
    device = ptx.Device()
    with pytest.raises(ptx.UnsupportedPtxError):
        device.launch(kernel(body, 0), "k", 1, 32, [])


def test_barrier_for_part_of_the_block_is_an_error() -> None:
    device = ptx.Device()
    device.launch(kernel("bar.sync 1, 64;", 0), "k", 1, 64, [])
    assert device.findings == []
    with pytest.raises(ptx.UnsupportedPtxError, match="part of the block"):
        device.launch(kernel("bar.sync 1, 32;", 0), "k", 1, 64, [])


def test_windows_of_generic_addresses() -> None:
    """isspacep tells them apart; mapa and getctarank name a block of the cluster."""
    body = """
    .shared .align 4 .b8 s[4];
    mov.u64 %d1, s; cvta.shared.u64 %d1, %d1; mov.u32 %r3, %cluster_ctarank;
    xor.b32 %r4, %r3, 1; mapa.u64 %d2, %d1, %r4; getctarank.u64 %r5, %d2; getctarank.u64 %r6, %d1;
    isspacep.shared %p0, %d1; isspacep.shared::cta %p1, %d2; isspacep.shared::cluster %p2, %d2;
    isspacep.global %p3, %d8;
    selp.u32 %r7, 1, 0, %p0; @%p1 or.b32 %r7, %r7, 2;
    @%p2 or.b32 %r7, %r7, 4; @%p3 or.b32 %r7, %r7, 8;
    mad.lo.u64 %d3, %d0, 16, %d8; st.global.v4.u32 [%d3], {%r3, %r5, %r6, %r7};
    """
    device = ptx.Device()
    out = device.allocate((64, 4), np.uint32, "out")
    device.launch(kernel(body, 1), "k", 2, 32, [out], cluster=2)
    assert device.findings == []
    np.testing.assert_array_equal(out.read()[::32], [[0, 1, 0, 13], [1, 0, 1, 13]])


def test_volatile_accesses_do_not_race_with_each_other() -> None:
    """But a plain access beside them does."""
    strong = "st.volatile.global.u32 [%d8], %r0; ld.relaxed.gpu.global.u32 %r3, [%d8];"
    for body, kinds in ((strong, set()), (strong + "ld.global.u32 %r3, [%d8];", {"race"})):
        device = ptx.Device()
        device.launch(kernel(body, 1), "k", 2, 64, [device.upload(np.zeros(1, np.uint32), "x")])
        assert {finding.kind for finding in device.findings} == kinds


@pytest.mark.parametrize("second", ["", "bar.warp.sync -1;"])
def test_later_reads_count(second: str) -> None:
    """A warp barrier between two reads of a thread orders only the first."""
    body = f"""
    .shared .align 4 .b8 s[4];
    setp.eq.u32 %p0, %r0, 0; setp.eq.u32 %p1, %r0, 1;
    @%p0 st.shared.u32 [s], 7; bar.warp.sync -1;
    @%p0 ld.shared.u32 %r3, [s]; bar.warp.sync -1; @%p0 ld.shared.u32 %r3, [s];
    {second} @%p1 st.shared.u32 [s], 8;
    """
    device = ptx.Device()
    device.launch(kernel(body, 0), "k", 1, 32, [])
    assert {finding.kind for finding in device.findings} == (set() if second else {"race"})


def test_read_only_load_of_what_was_written() -> None:
    """Reading before the write, as a gradient in place does, is another matter."""
    place = "mad.lo.u64 %d1, %d0, 4, %d8;"
    read, write = "ld.global.nc.u32 %r3, [%d1];", "st.global.u32 [%d1], %r0;"
    for body, kinds in ((read + write, set()), (write + read, {"read-only load"})):
        device = ptx.Device()
        x = device.upload(np.zeros(64, np.uint32), "x")
        device.launch(kernel(place + body, 1), "k", 1, 64, [x])
        assert {finding.kind for finding in device.findings} == kinds
