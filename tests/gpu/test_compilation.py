"""Every CUDA source compiles for every target; warnings, spills and local memory are errors."""

from __future__ import annotations

import pytest
from compiler import Compiler
from kernel_problem import FLAGS, SOURCES

CUBIN_FLAGS = (*FLAGS, "-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
@pytest.mark.parametrize("source", sorted(path.name for path in SOURCES.glob("*.cu")))
def test_compiles(nvcc: Compiler, source: str, arch: str) -> None:
    nvcc.cubin(SOURCES / source, arch, CUBIN_FLAGS)
