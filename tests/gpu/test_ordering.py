"""Order between blocks through atomics, and asynchronous copies within a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler

KERNELS = Path(__file__).parent / "kernels"
SEEDS = [0, 1, 2]
BLOCKS = 6


@pytest.fixture(scope="module")
def last_block(nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(KERNELS / "last_block.cu")


def launch_last_block(
    module: ptx.Module, kernel: str, seed: int, max_lanes: int
) -> tuple[ptx.Device, float, int]:
    device = ptx.Device()
    x = device.upload(np.ones(BLOCKS * 64, np.float32), "x")
    partial = device.allocate(BLOCKS * 2, np.float32, "partial")
    counter = device.upload(np.zeros(1, np.uint32), "counter")
    out = device.allocate(1, np.float32, "out")
    arguments = [x, partial, counter, out, 64][: 4 if "acq_rel" in kernel else 5]
    device.launch(module, kernel, BLOCKS, 64, arguments, seed=seed, max_lanes=max_lanes)
    return device, float(out.read()[0]), int(counter.read()[0])


@pytest.mark.parametrize("max_lanes", [128, 1024], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("seed", SEEDS)
def test_last_block(last_block: ptx.Module, seed: int, max_lanes: int) -> None:
    device, out, counter = launch_last_block(last_block, "last_block_sumILi0E", seed, max_lanes)
    assert device.findings == []
    assert (out, counter) == (BLOCKS * 64, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_by_acquire_and_release(last_block: ptx.Module, seed: int) -> None:
    device, out, counter = launch_last_block(last_block, "last_block_acq_rel", seed, 1024)
    assert device.findings == []
    assert (out, counter) == (2 * BLOCKS, BLOCKS)


@pytest.mark.parametrize("bug", [1, 2, 3], ids=["no release", "no acquire", "no barrier"])
@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_mistake(last_block: ptx.Module, bug: int, seed: int) -> None:
    device, _, _ = launch_last_block(last_block, f"last_block_sumILi{bug}E", seed, 1024)
    assert {finding.kind for finding in device.findings} == {"race"}


COPY_BUGS = {
    "no wait": (1, "asynchronous copy"),
    "wait for too few": (2, "asynchronous copy"),
    "no barrier": (3, "race"),
    "refilled too early": (4, "race"),
}


@pytest.fixture(scope="module")
def copies(nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(KERNELS / "async_copy.cu")


def launch_copies(
    module: ptx.Module, bug: int, seed: int, valid: int = 256
) -> tuple[ptx.Device, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 1000, (BLOCKS, 5, 256)).astype(np.uint32)
    device = ptx.Device()
    out = device.upload(np.zeros(BLOCKS, np.uint32), "out")
    arguments = [device.upload(x, "x"), out, 5, valid]
    device.launch(module, f"pipelined_sumILi{bug}E", BLOCKS, 64, arguments, seed=seed)
    return device, out.read(), x[:, :, :valid].sum((1, 2))


@pytest.mark.parametrize("valid", [256, 250, 0], ids=["whole", "tail filled with zeros", "empty"])
@pytest.mark.parametrize("seed", SEEDS)
def test_copy(copies: ptx.Module, seed: int, valid: int) -> None:
    device, out, expected = launch_copies(copies, 0, seed, valid)
    assert device.findings == []
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("bug", "kind"), COPY_BUGS.values(), ids=COPY_BUGS.keys())
@pytest.mark.parametrize("seed", SEEDS)
def test_copy_mistake(copies: ptx.Module, bug: int, kind: str, seed: int) -> None:
    device, _, _ = launch_copies(copies, bug, seed)
    assert kind in {finding.kind for finding in device.findings}
