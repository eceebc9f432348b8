"""Being here puts tests/ on sys.path, so that test modules can import their helpers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

DEVICE = os.environ.get("BGKD_TEST_DEVICE", "cpu")
"""Where the operator tests run."""


def pytest_configure() -> None:
    if DEVICE == "cpu":
        return
    import torch

    from bgkd_megatron import ops

    if DEVICE != "cuda":
        raise pytest.UsageError(f"BGKD_TEST_DEVICE must be cpu or cuda, got {DEVICE!r}")
    if "cuda" not in ops.DEVICES:
        raise pytest.UsageError("BGKD_TEST_DEVICE=cuda: this build has no CUDA kernels")
    if not torch.cuda.is_available():
        raise pytest.UsageError("BGKD_TEST_DEVICE=cuda: torch sees no GPU")


@pytest.fixture
def device() -> Iterator[str]:
    """All tensors that the test makes are there, unless it says otherwise."""
    import torch

    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    yield DEVICE
    torch.set_default_device(None)
