"""The shipped kernels keep the limits of limits.toml, and docs/kernels.md shows their figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiler import Compiler
from kernel_problem import SOURCES
from sass import ToolsMissingError, check, read_limits
from test_compilation import CUBIN_FLAGS

LIMITS = Path(__file__).with_name("limits.toml")
LIMITED = ("vocab_stats_bf16", "vocab_stats_fp16", "vocab_stats_fp32", "gradient", "fused")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_limits_hold(nvcc: Compiler, arch: str) -> None:
    cubins = [nvcc.cubin(SOURCES / f"{name}.cu", arch, CUBIN_FLAGS) for name in LIMITED]
    limits = read_limits(LIMITS)
    try:
        report = check(cubins, limits)
    except ToolsMissingError as missing:
        pytest.skip(str(missing))
    assert not report.breaches, "\n".join(report.breaches)
    unused = [e.name for e in limits if not any(e.name in f.kernel for f in report.figures)]
    assert not unused, f"no kernel has the name {unused}"
