"""The sample kernels: values against float64, and the switches of a launch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler
from sample_problem import FLAGS, SampleProblem, run

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(scope="module")
def module(nvcc: Compiler) -> ptx.Module:
    return nvcc.ptx(KERNELS / "sample_instances.cu", flags=FLAGS)


@pytest.fixture(scope="module")
def problem() -> SampleProblem:
    return SampleProblem(rows=8, columns=2056)


@pytest.mark.parametrize("threads", [256, 512])
@pytest.mark.parametrize("seed", [0, 1])
def test_values(module: ptx.Module, problem: SampleProblem, threads: int, seed: int) -> None:
    result = run(module, problem, threads, seed=seed)
    assert result.device.findings == []
    assert problem.divergence_error(result.stats) < 1e-6
    assert problem.gradient_is_right(result.gradient)


@pytest.mark.parametrize("arch", ["sm_80", "sm_100a"])
def test_other_architectures(nvcc: Compiler, problem: SampleProblem, arch: str) -> None:
    result = run(nvcc.ptx(KERNELS / "sample_instances.cu", arch, FLAGS), problem)
    assert result.device.findings == []
    assert problem.divergence_error(result.stats) < 1e-6
    assert problem.gradient_is_right(result.gradient)


def test_schedule_and_chunks_change_no_bit(module: ptx.Module, problem: SampleProblem) -> None:
    """Sums are formed in a fixed order: neither seeds nor chunks of blocks may show."""
    plain = run(module, problem)
    for options in ({"seed": 3}, {"max_lanes": 512}, {"max_lanes": 512, "seed": 4}):
        other = run(module, problem, **options)
        assert other.device.findings == []
        np.testing.assert_array_equal(other.stats, plain.stats)
        np.testing.assert_array_equal(other.gradient, plain.gradient)


def test_noise_moves_results_within_its_bounds(module: ptx.Module, problem: SampleProblem) -> None:
    plain, noisy = run(module, problem), run(module, problem, noise=1.0)
    assert not np.array_equal(plain.stats, noisy.stats)
    assert problem.divergence_error(noisy.stats) < 3e-6
    assert problem.gradient_is_right(noisy.gradient, tolerance=2e-6)


def test_profile(module: ptx.Module, problem: SampleProblem) -> None:
    stats, gradient = (r.profile for r in run(module, problem, profile=True).reports)
    assert stats is not None
    assert gradient is not None
    pairs = problem.rows * problem.columns
    loads, stores = stats.traffic["load global"], gradient.traffic["store global"]
    assert (loads.bytes, stores.bytes) == (4 * pairs, 2 * pairs)
    # every sector is fetched once: rows start with one, and the last one of a row is cut
    sectors = problem.rows * -(-problem.columns * 2 // 32)
    assert (loads.sectors, stores.sectors) == (2 * sectors, sectors)
    assert stats.lanes["ex2.approx.ftz.f32"] >= 2 * pairs
    assert stats.active_lanes > 0.9
    exchange = stats.traffic["store shared"]
    assert exchange.wavefronts == exchange.requests  # no bank conflicts
