"""Process groups and devices: torch.distributed and Megatron's parallel state, from start to end.

Megatron is imported only where its groups are built, so that the launcher can let the processes
talk to each other before anything heavy is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from bgkd_megatron.megatron.config import ParallelConfig

__all__ = [
    "device",
    "init_distributed",
    "init_model_parallel",
    "process_groups",
    "shutdown",
]


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def init_distributed(timeout_minutes: float = 30.0) -> None:
    """Join the processes that torchrun started; without torchrun the job is this one process.

    NCCL and one GPU per process where CUDA is available, else gloo.
    """
    timeout = timedelta(minutes=timeout_minutes)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, timeout=timeout, store=store, rank=0, world_size=1)


def init_model_parallel(layout: ParallelConfig, *, seed: int = 0) -> None:
    """Build Megatron's groups over all processes and seed its random number generators.

    The world size must be a multiple of layout.ranks_per_replica; the quotient is the data-parallel
    size.
    """
    from megatron.core import parallel_state, tensor_parallel

    virtual = layout.virtual_pipeline
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=layout.context_parallel,
        expert_model_parallel_size=layout.expert_parallel,
        distributed_timeout_minutes=layout.timeout_minutes,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Destroy Megatron's groups and leave torch.distributed; does nothing when not joined."""
    if dist.is_initialized():
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def process_groups() -> Iterator[None]:
    """Everything a Megatron model needs on this one process, for the length of a with block."""
    init_distributed()
    try:
        init_model_parallel(ParallelConfig())
        yield
    finally:
        shutdown()
