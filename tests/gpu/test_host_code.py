"""Real host code: what nvcc built launches through the stand-in runtime into the executor."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import ptx
import pytest
from sample_problem import FLAGS, PADDING, TEMPERATURE, SampleProblem
from stand_in_runtime import LAUNCH_FAILURE, StandInRuntime

KERNELS = Path(__file__).parent / "kernels"
INVALID_VALUE, INVALID_CLUSTER_SIZE, ILLEGAL_ADDRESS = 1, 912, 700


@pytest.fixture(scope="module")
def sample(runtime: StandInRuntime) -> ctypes.CDLL:
    return runtime.build(KERNELS / "sample.cu", flags=FLAGS)


@pytest.fixture(scope="module")
def staging(runtime: StandInRuntime) -> ctypes.CDLL:
    return runtime.build(KERNELS / "host_launches.cu")


def pointer(array: ptx.DeviceArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.address)


def run_sample(runtime: StandInRuntime, sample: ctypes.CDLL, problem: SampleProblem,
               extra_rows: int = 0) -> tuple[Any, ...]:  # fmt: skip
    device = ptx.Device()
    stride = problem.columns + PADDING
    student = device.upload(problem.student, "student", row_stride=stride)
    teacher = device.upload(problem.teacher, "teacher", row_stride=stride)
    scale = device.upload(problem.scale, "scale")
    stats = device.allocate((problem.rows, 5), np.float32, "stats")
    gradient = device.allocate(
        (problem.rows, problem.columns), np.uint16, "grad", row_stride=stride
    )
    sizes = [problem.rows + extra_rows, problem.columns, ctypes.c_int64(stride)]
    rest = [ctypes.c_float(TEMPERATURE), ctypes.c_void_p(17)]
    with runtime.using(device) as launches:
        inputs = [pointer(a) for a in (student, teacher, stats)]
        forward = sample.sample_forward(*inputs, *sizes, *rest)
        backward = sample.sample_backward(*inputs, pointer(scale), pointer(gradient), *sizes, *rest)
    return device, stats.read(), gradient.read(), launches, (forward, backward)


def test_both_ways_to_launch(runtime: StandInRuntime, sample: ctypes.CDLL) -> None:
    problem = SampleProblem(rows=3, columns=2056)
    device, stats, gradient, launches, codes = run_sample(runtime, sample, problem)
    assert codes == (0, 0)
    assert device.findings == []
    assert problem.divergence_error(stats) < 1e-6
    assert problem.gradient_is_right(gradient)
    assert [(x.grid, x.block, x.cluster, x.stream) for x in launches] == [
        ((3, 1, 1), (256, 1, 1), None, 17),
        ((3, 1, 1), (512, 1, 1), None, 17),
    ]


def test_finding_is_a_failed_launch(runtime: StandInRuntime, sample: ctypes.CDLL) -> None:
    problem = SampleProblem(rows=3, columns=2056)
    device, *_, codes = run_sample(runtime, sample, problem, extra_rows=1)
    assert codes == (LAUNCH_FAILURE, LAUNCH_FAILURE)
    assert "out of bounds" in {finding.kind for finding in device.findings}


def stage(
    runtime: StandInRuntime,
    library: ctypes.CDLL,
    elements: int,
    *,
    cluster: int = 0,
    allow: bool = True,
    blocks: int = 4,
    copied: int | None = None,
) -> tuple[Any, ...]:
    device = ptx.Device()
    x = device.upload(np.arange(elements, dtype=np.int32), "x")
    copy = device.allocate(copied or elements, np.int32, "copy")
    out = device.allocate(blocks * 64, np.int32, "out")
    with runtime.using(device) as launches:
        code = library.copy_and_stage(
            pointer(x), pointer(copy), pointer(out), elements, blocks, cluster, int(allow), None
        )
    assert device.findings == []
    return code, out, launches


@pytest.mark.parametrize("cluster", [0, 2, 4])
def test_clusters_copies_and_large_shared_memory(
    runtime: StandInRuntime, staging: ctypes.CDLL, cluster: int
) -> None:
    code, out, launches = stage(runtime, staging, 50_000, cluster=cluster)
    assert code == 0
    rank = np.arange(256) // 64 % (cluster or 1)
    np.testing.assert_array_equal(out.read(), np.arange(256) + rank)
    assert launches[0].cluster == ((cluster, 1, 1) if cluster else None)
    assert launches[0].dynamic_shared == 200_000


def test_shared_memory_must_be_asked_for(runtime: StandInRuntime, staging: ctypes.CDLL) -> None:
    code, _, launches = stage(runtime, staging, 50_001, allow=False, cluster=2)
    assert (code, launches) == (INVALID_VALUE, [])


def test_cluster_beyond_what_is_portable(runtime: StandInRuntime, staging: ctypes.CDLL) -> None:
    code, _, launches = stage(runtime, staging, 1024, cluster=16, blocks=16)
    assert (code, launches) == (INVALID_CLUSTER_SIZE, [])


def test_copy_past_the_end(runtime: StandInRuntime, staging: ctypes.CDLL) -> None:
    code, _, launches = stage(runtime, staging, 1024, copied=1000)
    assert (code, launches) == (ILLEGAL_ADDRESS, [])
