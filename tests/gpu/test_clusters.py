"""Blocks of a cluster that use each other's shared memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler

KERNELS = Path(__file__).parent / "kernels"
SEEDS = [0, 1, 2]
CLUSTERS = 3
BUGS = {
    "no first barrier": (1, {"race", "cluster lifetime"}),
    "no last barrier": (2, {"cluster lifetime"}),
    "relaxed arrive": (3, {"race"}),
    "write after arrive": (4, {"race"}),
    "rank beyond the cluster": (5, {"out of bounds"}),
}


@pytest.fixture(scope="module")
def module(nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(KERNELS / "cluster.cu")


def cluster_sum(
    module: ptx.Module, bug: int, seed: int
) -> tuple[ptx.Device, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(CLUSTERS, 4, 64)).astype(np.float32)
    device = ptx.Device()
    out = device.allocate((CLUSTERS, 64), np.float32, "out")
    arguments = [device.upload(x, "x"), out]
    device.launch(
        module, f"cluster_sumILi{bug}E", CLUSTERS * 4, 64, arguments, seed=seed, max_lanes=512
    )
    return device, out.read(), x.sum(1, dtype=np.float64)


@pytest.mark.parametrize("seed", SEEDS)
def test_sum_over_cluster(module: ptx.Module, seed: int) -> None:
    device, out, expected = cluster_sum(module, 0, seed)
    assert device.findings == []
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(("bug", "kinds"), BUGS.values(), ids=BUGS.keys())
@pytest.mark.parametrize("seed", SEEDS)
def test_mistake(module: ptx.Module, bug: int, kinds: set[str], seed: int) -> None:
    device, _, _ = cluster_sum(module, bug, seed)
    assert kinds <= {finding.kind for finding in device.findings}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_ring(module: ptx.Module, size: int, seed: int) -> None:
    """Remote stores in the shared::cluster window; cluster size from the launch."""
    device = ptx.Device()
    out = device.allocate((8, 2, 32), np.int32, "out")
    device.launch(module, "cluster_ringILi0E", 8, 32, [out], cluster=size, seed=seed)
    assert device.findings == []
    rank = np.arange(8) % size
    expected = ((rank - 1) % size)[:, None] + [0, 100]
    np.testing.assert_array_equal(out.read(), np.repeat(expected[:, :, None], 32, axis=2))


@pytest.mark.parametrize("seed", SEEDS)
def test_ring_overwritten_too_early(module: ptx.Module, seed: int) -> None:
    device = ptx.Device()
    out = device.allocate((8, 2, 32), np.int32, "out")
    device.launch(module, "cluster_ringILi1E", 8, 32, [out], cluster=4, seed=seed)
    assert "race" in {finding.kind for finding in device.findings}


def test_launch_must_fit_cluster_dims(module: ptx.Module) -> None:
    device = ptx.Device()
    x, out = device.upload(np.zeros(64, np.float32), "x"), device.allocate(64, np.float32, "out")
    device.launch(module, "cluster_sumILi0E", 6, 64, [x, out])
    device.launch(module, "cluster_sumILi0E", 4, 64, [x, out], cluster=2)
    assert [finding.kind for finding in device.findings] == ["launch", "launch"]
