"""Process groups and devices: torch.distributed and Megatron's parallel state, from start to end.

Megatron is imported only where its groups are built, so that the launcher can let the processes
talk to each other before anything heavy is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "device",
    "init_distributed",
    "init_model_parallel",
    "is_first",
    "process_groups",
    "shutdown",
]

_TIMEOUT = timedelta(minutes=30)
_store: Any = None  # torch's dist.Store of the job, which outlives a rank that dies


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def init_distributed() -> None:
    """Join the processes that torchrun started; without torchrun the job is this one process.

    NCCL and one GPU per process where CUDA is available, else gloo.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if cuda else "gloo"
    global _store
    if "RANK" in os.environ:
        store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    else:
        store, rank, world_size = dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    _store = store
    dist.init_process_group(
        backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=world_size
    )


def is_first(key: str) -> bool:
    """Whether no other process of the job has asked for `key` yet.  Not a collective: for messages
    of ranks that cannot count on each other any more."""
    try:
        return int(_store.add(f"first/{key}", 1)) == 1
    except RuntimeError:  # the process that holds the store is gone
        return True


def init_model_parallel(tensor_parallel_size: int = 1, *, seed: int = 0) -> None:
    """Build Megatron's groups over all processes and seed its random number generators.

    The world size must be a multiple of tensor_parallel_size; the quotient is the data-parallel
    size.
    """
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel_size)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Destroy Megatron's groups and leave torch.distributed; does nothing when not joined."""
    if dist.is_initialized():
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def process_groups(tensor_parallel_size: int = 1, *, seed: int = 0) -> Iterator[None]:
    """Everything a Megatron model needs, for the length of a with block (converters, tests)."""
    init_distributed()
    try:
        init_model_parallel(tensor_parallel_size, seed=seed)
        yield
    finally:
        shutdown()
