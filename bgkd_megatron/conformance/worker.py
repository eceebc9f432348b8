"""One rank: all problems in turn, each result to a file as soon as it is there."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from bgkd_megatron.conformance.candidate import Candidate, Setting
from bgkd_megatron.conformance.measure import Measured, measure
from bgkd_megatron.conformance.problems import PROBLEMS

__all__ = ["Failure", "Job", "Rank", "result_path", "run_rank", "started_path"]


@dataclass(frozen=True)
class Job:
    """What all ranks of a launch are told."""

    load: Callable[[], Candidate]
    """A function that a new process can import, or a partial of one."""
    problems: tuple[str, ...]
    tp_size: int
    directory: str
    timeout: float
    """Seconds that a collective of the candidate may wait."""


@dataclass(frozen=True)
class Failure:
    """Why a rank has no measurement."""

    kind: str
    """"missing", "hangs" or "crashes"."""
    message: str
    when: float
    """By the machine's monotonic clock: the first of several ranks is the cause."""


Rank = Measured | Failure


def result_path(directory: str, rank: int, problem: str) -> Path:
    """Where a rank leaves its measurement or failure."""
    return Path(directory) / f"{problem}.{rank}.pt"


def started_path(directory: str, rank: int) -> Path:
    """Exists when everything is imported."""
    return Path(directory) / f"started.{rank}"


def run_rank(job: Job, rank: int) -> None:
    """Ends after the first failure: ranks that disagree about what comes next would hang."""
    _silence()
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=job.timeout)
    problem = job.problems[0]
    try:
        candidate = _loaded(job, rank)
        group = dist.new_group(timeout=timeout)
        first = PROBLEMS[problem]()
        widths = first.widths(job.tp_size)
        candidate.make(Setting(first.vocab_size, widths[rank], widths, group))  # imports
        gc.freeze()  # collecting garbage is then fast: nothing that was imported is looked at
        started_path(job.directory, rank).touch()
        for problem in job.problems:
            # The barrier is of another group: no rank gets ahead to meet another problem's
            # collective, and the slowest decides by its own timeout.
            dist.barrier()
            _save(job, rank, problem, measure(candidate, PROBLEMS[problem](), group))
        dist.barrier()
    except Exception as error:
        _save(job, rank, problem, _failure(error))
        os._exit(1)  # whatever still waits, in other threads, too
    os._exit(0)


def _loaded(job: Job, rank: int) -> Candidate:
    candidate = job.load()
    os.environ.update(candidate.environment)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.directory}/rendezvous",
        rank=rank,
        world_size=job.tp_size,
        timeout=datetime.timedelta(seconds=4 * job.timeout),
    )
    if candidate.needs_megatron:
        from bgkd_megatron.megatron import cpu_compat

        cpu_compat.install()
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(
            job.tp_size, distributed_timeout_minutes=job.timeout / 60
        )
    return candidate


def _failure(error: Exception) -> Failure:
    first_line = next(iter(str(error).strip().splitlines()), "")
    # An ImportError ends with the file that it is about, somewhere on this machine.
    message = re.sub(r" \(/\S+\)$", "", f"{type(error).__name__}: {first_line}")
    if isinstance(error, ImportError):
        kind = "missing"
    elif isinstance(error, RuntimeError) and "timed out" in str(error).lower():
        kind = "hangs"
    else:
        kind = "crashes"
    return Failure(kind, message, time.monotonic())


def _save(job: Job, rank: int, problem: str, result: Rank) -> None:
    """Whole or not at all: the process may be killed at any time."""
    path = result_path(job.directory, rank, problem)
    torch.save(result, path.with_suffix(".part"))
    with contextlib.suppress(OSError):
        path.with_suffix(".part").rename(path)


def _silence() -> None:
    """What packages print is not for the table; what they raise is reported."""
    warnings.filterwarnings("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
