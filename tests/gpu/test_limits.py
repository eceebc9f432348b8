"""The shipped kernels keep the limits of limits.toml; docs/kernels.md shows their figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from sass import ToolsMissingError, check, read_limits
from vocab_kernels.build import ARCHITECTURES, ShippedKernels

LIMITS = Path(__file__).with_name("limits.toml")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_limits_hold(shipped: ShippedKernels, arch: str) -> None:
    # a file with nothing but host code has no kernel
    cubins = [path for path in shipped.cubins(arch) if not path.name.startswith("vocab_stats.")]
    limits = read_limits(LIMITS)
    try:
        report = check(cubins, limits)
    except ToolsMissingError as missing:
        pytest.skip(str(missing))
    assert not report.breaches, "\n".join(report.breaches)
    assert not report.without_limits
    used = {(f.title, f.kernel) for f in report.figures}
    unused = [e.name for e in limits if not any(e.title == t and e.matches(k) for t, k in used)]
    assert not unused, f"no kernel has the name {unused}"
