from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator

import pytest
from compiler import Compiler, find_tool
from stand_in_runtime import StandInRuntime
from vocab_kernels.build import ShippedKernels, build, host_library
from vocab_kernels.launchers import Launchers


@pytest.fixture(scope="session")
def nvcc(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    path = find_tool("nvcc")
    if path is None:
        pytest.skip("nvcc is not on PATH, in CUDA_HOME or in site-packages: kernels are not proven")
    return Compiler(path, tmp_path_factory.mktemp("nvcc"))


@pytest.fixture(scope="session")
def runtime(nvcc: Compiler) -> StandInRuntime:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the stand-in runtime with")
    return StandInRuntime(nvcc)


@pytest.fixture(scope="session")
def shipped(nvcc: Compiler) -> ShippedKernels:
    """The kernels of csrc/cuda, compiled for every architecture."""
    return build(nvcc)


@pytest.fixture(scope="session")
def launcher_library(runtime: StandInRuntime, shipped: ShippedKernels) -> Launchers:
    made = Launchers(runtime, host_library(runtime, shipped), shipped)
    # a million instructions, which every full collection would look at again
    gc.collect()
    gc.freeze()
    return made


@pytest.fixture
def launchers(launcher_library: Launchers, request: pytest.FixtureRequest) -> Iterator[Launchers]:
    """The launchers of csrc/cuda; launches run the PTX of sm_90a in the executor, or of the
    architecture that is the fixture's parameter."""
    with launcher_library.on(getattr(request, "param", "sm_90a")):
        yield launcher_library
