"""Named ranges of time, for the profilers: torch's and, on a GPU, Nsight Systems (NVTX)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

__all__ = ["named_range"]


@contextmanager
def named_range(name: str) -> Iterator[None]:
    """What is called within belongs to bgkd/NAME.  Costs microseconds when nobody profiles."""
    with record_function(f"bgkd/{name}"):
        if not torch.cuda.is_available():
            yield
            return
        with torch.cuda.nvtx.range(f"bgkd/{name}"):
            yield
