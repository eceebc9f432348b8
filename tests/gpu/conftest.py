from __future__ import annotations

import shutil

import pytest
from compiler import Compiler, find_tool
from stand_in_runtime import StandInRuntime


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
