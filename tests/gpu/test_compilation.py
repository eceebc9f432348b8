"""What nvcc makes of csrc/cuda with setup.py's flags: warnings, spills, local memory are errors."""

from __future__ import annotations

import pytest
from vocab_kernels.build import ARCHITECTURES, ShippedKernels
from vocab_kernels.headers import every_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_is_proven(shipped: ShippedKernels, arch: str) -> None:
    """Every kernel is one whose values are tested, and there is one for each of these."""
    compiled, proven = shipped.names(arch), every_kernel()
    unproven = [name for name in compiled if sum(part in name for part in proven) != 1]
    assert unproven == []
    assert len(compiled) == len(proven)
