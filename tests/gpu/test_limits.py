"""The shipped kernels keep the limits of limits.toml; docs/kernels.md shows their figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from sass import ToolsMissingError, check, read_limits
from vocab_kernels.build import ARCHITECTURES, ShippedKernels

LIMITS = Path(__file__).with_name("limits.toml")
LIMITED = ("vocab_stats_", "gradient", "fused")  # sources


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_limits_hold(shipped: ShippedKernels, arch: str) -> None:
    cubins = [path for path in shipped.cubins(arch) if path.name.startswith(LIMITED)]
    assert len(cubins) == 5
    limits = read_limits(LIMITS)
    try:
        report = check(cubins, limits)
    except ToolsMissingError as missing:
        pytest.skip(str(missing))
    assert not report.breaches, "\n".join(report.breaches)
    unused = [e.name for e in limits if not any(e.name in f.kernel for f in report.figures)]
    assert not unused, f"no kernel has the name {unused}"
