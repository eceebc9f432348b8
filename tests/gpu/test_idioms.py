"""Warp and block operations, atomics, vectors and address spaces, against numpy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler

KERNELS = Path(__file__).parent / "kernels"
BIT = 1 << np.arange(32, dtype=np.int64)


@pytest.fixture(scope="module", params=["sm_80", "sm_90a", "sm_100a"])
def module(nvcc: Compiler, request: pytest.FixtureRequest) -> ptx.Module:
    return nvcc.ptx(KERNELS / "idioms.cu", request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_warp_votes(module: ptx.Module, seed: int) -> None:
    x = np.random.default_rng(0).integers(-100, 100, 64).astype(np.int32)
    device = ptx.Device()
    out = device.allocate((64, 18), np.uint32, "votes")
    device.launch(module, "warp_votes", 1, 64, [device.upload(x, "x"), out], seed=seed)
    assert device.findings == []
    v = x.astype(np.int64).reshape(2, 32)
    lane = np.arange(32)
    low = v & 3
    equal = (low[:, :, None] == low[:, None, :]) * BIT
    half = np.where(lane < 16, v[:, :16].sum(1)[:, None], 2 * v[:, 16:].sum(1)[:, None])
    seven = lane // 8 * 8 + lane * 7 % 8
    columns = [
        (v > 0) @ BIT, (v > 90).any(1), (v > -200).all(1), v.sum(1), v.max(1),
        (v & 0xFFFFFFFF).min(1), np.bitwise_xor.reduce(v, axis=1), equal.sum(2),
        np.where((low == low[:, :1]).all(1), 2**32, 0),  # the whole mask, and 1
        v[:, np.where(lane < 3, lane, lane - 3)], v[:, np.where(lane % 16 < 11, lane + 5, lane)],
        v[:, seven], v[:, lane ^ 9], (v > 0).sum(), (v > 90).any(), (v > -200).all(), half,
    ]  # fmt: skip
    got = out.read().reshape(2, 32, 18)
    for k, column in enumerate(columns):
        column = np.asarray(column)
        wanted = np.broadcast_to(column[:, None] if column.ndim == 1 else column, (2, 32))
        np.testing.assert_array_equal(got[:, :, k], (wanted & 0xFFFFFFFF).astype(np.uint32), str(k))
    # which lanes run together is up to the hardware: at least the thread itself
    together = got[:, :, 17]
    assert ((together > 0) == (v > 0)).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_addressing(module: ptx.Module, seed: int) -> None:
    rows, columns, scale = 3, 200, 0.5
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    ids = np.array([5, 199, 0])
    device = ptx.Device()
    out = device.upload(np.zeros(rows, np.float32), "out")
    total = device.upload(np.zeros(1), "total")
    sizes = struct.pack("<qqf3B1x", rows, columns, scale, 7, 11, 13)
    arguments = [device.upload(x, "x"), device.upload(ids, "ids"), sizes, out, total]
    for _ in range(2):
        device.launch(
            module, "addressing", (1, rows), 128, arguments, dynamic_shared=4 * columns, seed=seed
        )
    count = device.allocate(1, np.uint32, "count")
    device.launch(module, "read_launches", 1, 32, [count])
    kinds = {finding.kind for finding in device.findings}
    assert kinds == {"race"}  # 32 threads write one word of read_launches
    scaled = x * np.where(
        np.arange(columns) == ids[:, None], 2.0 ** (np.arange(columns) & 3), scale
    )
    expected = 2 * np.where(np.arange(columns) & 1, scaled, x).sum(1)
    np.testing.assert_allclose(out.read(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total.read(), expected.sum(), rtol=1e-5)
    assert count.read() == 2 * rows * 11


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(module: ptx.Module, seed: int) -> None:
    x = np.random.default_rng(0).integers(-100, 100, 64).astype(np.int32)
    device = ptx.Device()
    start = np.array([0, 0, 1000, -1000, -1, 0, 0, 0, 0, 0], np.int32)
    results, largest = device.upload(start, "results"), device.upload(np.zeros(1, np.float32), "l")
    device.launch(module, "atomics", 1, 64, [device.upload(x, "x"), results, largest], seed=seed)
    assert device.findings == []
    ands, ors = np.bitwise_and.reduce(x | 8), np.bitwise_or.reduce(x & 12)
    expected = [x.sum(), -x.sum(), x.min(), x.max(), ands, ors, np.bitwise_xor.reduce(x),
                64 % 10, (10 - 64 % 10) % 10, 5]  # fmt: skip
    np.testing.assert_array_equal(results.read(), expected)
    assert largest.read() == x.max() / 2


def test_vectors(module: ptx.Module) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(32, 8)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    device = ptx.Device()
    out = device.allocate((32, 8), np.uint16, "out")
    device.launch(module, "vectors", 1, 32, [device.upload(x, "x"), out])
    assert device.findings == []
    values = (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    pair = values.reshape(16, 16)[np.arange(32) // 2]
    p, q, r = values[:, 0:2], values[:, 2:4], pair[:, 4:6]
    got = (out.read().astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(got[:, 0:2], p * q + r, rtol=2**-8)
    np.testing.assert_array_equal(got[:, 2:4], np.maximum(p, q))
    np.testing.assert_array_equal(got[:, 4:6], np.minimum(q, r))
    np.testing.assert_array_equal(out.read()[:, 6], x[:, 7])
    np.testing.assert_array_equal(out.read()[:, 7], x.reshape(16, 16)[np.arange(32) // 2, 14])
