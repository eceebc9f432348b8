"""Every class of mistake is found, at every seed; kernels without a mistake give no finding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler

KERNELS = Path(__file__).parent / "kernels"
SEEDS = [0, 1, 2, 3]
BLOCKS = 4


def kinds(device: ptx.Device) -> set[str]:
    return {finding.kind for finding in device.findings}


@pytest.fixture(scope="module")
def planted(nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(KERNELS / "planted.cu")


def block_sums(
    module: ptx.Module, bug: int, seed: int
) -> tuple[ptx.Device, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(BLOCKS, 1000)).astype(np.float32)
    device = ptx.Device()
    out = device.allocate((BLOCKS, 2), np.float32, "out")
    arguments = [device.upload(x, "x"), out, 1000]
    device.launch(
        module, f"block_sumsILi{bug}E", BLOCKS, 256, arguments, dynamic_shared=16, seed=seed
    )
    return device, out.read(), x.sum(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sums(planted: ptx.Module, seed: int) -> None:
    device, out, expected = block_sums(planted, 0, seed)
    assert device.findings == []
    np.testing.assert_allclose(out, expected[:, None] * [1, 2], rtol=1e-4)


@pytest.mark.parametrize("bug", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_missing_block_barrier(planted: ptx.Module, bug: int, seed: int) -> None:
    device, _, _ = block_sums(planted, bug, seed)
    assert kinds(device) == {"race"}
    assert "planted.cu:" in str(device.findings[0])


@pytest.mark.parametrize(("bug", "expected"), [(0, set()), (1, {"race"}), (2, {"race"})])
@pytest.mark.parametrize("seed", SEEDS)
def test_warp_exchange(planted: ptx.Module, bug: int, expected: set[str], seed: int) -> None:
    """A barrier orders the threads of its mask, not those of the whole warp."""
    x = np.arange(BLOCKS * 256, dtype=np.float32)
    device = ptx.Device()
    out = device.allocate(x.size, np.float32, "out")
    arguments = [device.upload(x, "x"), out]
    device.launch(planted, f"warp_exchangeILi{bug}E", BLOCKS, 256, arguments, seed=seed)
    assert kinds(device) == expected
    if not bug:
        np.testing.assert_array_equal(out.read(), x.reshape(-1, 2)[:, ::-1].ravel())


MIXED = {
    "unwritten": (1, "uninitialised"),
    "past shared array": (2, "out of bounds"),
    "divergent barrier": (3, "divergent barrier"),
    "misaligned": (4, "misaligned"),
    "one address": (5, "race"),
    "past global array": (6, "out of bounds"),
    "blocks add": (7, "race"),
    "store against atomic": (8, "race"),
    "shuffle in branch": (9, "deadlock"),
    "two barriers": (10, "divergent barrier"),
    "lanes outside of the mask": (11, "warp mask"),
}


def mixed(module: ptx.Module, bug: int, seed: int) -> tuple[ptx.Device, np.ndarray, np.ndarray]:
    device = ptx.Device()
    out = device.upload(np.zeros(BLOCKS * 64 + 1, np.float32), "out")
    counter = device.upload(np.zeros(1, np.uint32), "counter")
    x = device.upload(np.ones(8, np.float32), "x")
    device.launch(module, f"mixedILi{bug}E", BLOCKS, 64, [x, out, counter, 1], seed=seed)
    return device, out.read(), counter.read()


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed(planted: ptx.Module, seed: int) -> None:
    device, out, counter = mixed(planted, 0, seed)
    assert device.findings == []
    np.testing.assert_array_equal(out[:-1], 3.0)
    assert (out[-1], counter[0]) == (BLOCKS, BLOCKS * 32)


@pytest.mark.parametrize(("bug", "kind"), MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("seed", SEEDS)
def test_mistake(planted: ptx.Module, bug: int, kind: str, seed: int) -> None:
    device, _, _ = mixed(planted, bug, seed)
    assert kind in kinds(device)


def test_local_array(planted: ptx.Module) -> None:
    device = ptx.Device()
    index, out = device.upload(np.zeros(32, np.int32), "i"), device.allocate(32, np.float32, "out")
    device.launch(planted, "local_array", 1, 32, [index, out])
    assert kinds(device) == {"local memory"}


def test_spinning_thread(planted: ptx.Module) -> None:
    device = ptx.Device()
    flag = device.upload(np.zeros(1, np.int32), "flag")
    device.launch(planted, "spin", 1, 32, [flag], max_steps=1000)
    assert kinds(device) == {"livelock"}


def test_row_padding_does_not_exist(planted: ptx.Module) -> None:
    """A kernel that runs into the padding of a row is found there, not only after the last row."""
    device = ptx.Device()
    x = device.upload(np.ones((BLOCKS, 256), np.float32), "x", row_stride=260)
    out = device.allocate(BLOCKS * 256, np.float32, "out")
    device.launch(planted, "warp_exchangeILi0E", BLOCKS, 256, [x, out])
    assert kinds(device) == {"out of bounds"}
    assert "block 1 thread 0" in str(device.findings[0])
    assert "nearest is x" in str(device.findings[0])


def test_slack_that_exists_is_unwritten(planted: ptx.Module) -> None:
    device = ptx.Device()
    x = device.upload(np.ones((BLOCKS, 256), np.float32), "x", row_stride=260, slack_exists=True)
    out = device.allocate(BLOCKS * 256, np.float32, "out")
    device.launch(planted, "warp_exchangeILi0E", BLOCKS, 256, [x, out])
    assert kinds(device) == {"uninitialised"}
