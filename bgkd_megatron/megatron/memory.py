"""How much memory the ranks have needed."""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist

from bgkd_megatron.megatron import parallel

__all__ = ["memory_metrics"]

_GIB = 2**30


def memory_metrics() -> dict[str, float]:
    """Peak memory since the start, in GiB: of all ranks the largest and the smallest, and of the
    largest which rank it is.  Collective: one all-gather of a number.

    On a GPU what torch has allocated there, else the resident memory of the process.
    """
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    everyone = torch.empty(dist.get_world_size(), dtype=torch.float64, device=parallel.device())
    dist.all_gather_into_tensor(everyone, everyone.new_tensor([peak]))
    peaks = everyone.tolist()
    return {
        "memory_max": max(peaks) / _GIB,
        "memory_min": min(peaks) / _GIB,
        "memory_max_rank": float(peaks.index(max(peaks))),
    }
