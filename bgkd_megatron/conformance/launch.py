"""Starts the ranks of one candidate at one tensor-parallel size, and ends them whatever happens."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from bgkd_megatron.conformance.candidate import Candidate
from bgkd_megatron.conformance.measure import Measured
from bgkd_megatron.conformance.worker import Failure, Job, Rank, result_path, run_rank, started_path

__all__ = ["ProblemResult", "launch"]

ProblemResult = list[Measured] | Failure
"""What each rank measured, or why there is nothing."""

# A dispatch mode imports torch._dynamo when it is first used, for seconds.
_PRELOADED = [
    "torch._dynamo",
    "bgkd_megatron.conformance.adapters",
    "bgkd_megatron.conformance.worker",
]
# Imports of large packages, on a loaded machine.
_START_SECONDS = 120.0


def launch(
    load: Callable[[], Candidate], tp_size: int, problems: Sequence[str], timeout: float
) -> dict[str, ProblemResult]:
    """Results by problem, up to the first that fails.

    load: a function that a new process can import; timeout: seconds that a collective may wait, and
    two thirds of those that a problem may take.
    """
    with tempfile.TemporaryDirectory(prefix="bgkd-conformance-") as directory:
        job = Job(load, tuple(problems), tp_size, directory, timeout)
        # Forked from a process that has imported this much and computed nothing: fast, and nothing
        # that one package does reaches another's numbers.
        # What is imported cannot heed the variables that a candidate needs: that one starts anew.
        context: SpawnContext | ForkServerContext
        if load().environment:
            context = multiprocessing.get_context("spawn")
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(_PRELOADED)
        processes = [
            context.Process(target=run_rank, args=(job, rank), daemon=True)
            for rank in range(tp_size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, job)
            return _collected(job, processes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _wait(processes: Sequence[BaseProcess], job: Job) -> None:
    """Until all end, or none gets anything done any more."""
    running = {process.sentinel for process in processes}
    done, since = -1, time.monotonic()
    while running:
        running -= set(connection.wait(list(running), timeout=0.1))
        if (now_done := len(list(Path(job.directory).glob("*.*")))) != done:
            done, since = now_done, time.monotonic()
        started = all(started_path(job.directory, rank).exists() for rank in range(job.tp_size))
        # A collective's own timeout says more: it comes first.
        if time.monotonic() - since > (1.5 * job.timeout if started else _START_SECONDS):
            return


def _collected(job: Job, processes: Sequence[BaseProcess]) -> dict[str, ProblemResult]:
    results: dict[str, ProblemResult] = {}
    for problem in job.problems:
        of_ranks = [_loaded(job, rank, problem) for rank in range(job.tp_size)]
        failures = [rank for rank in of_ranks if isinstance(rank, Failure)]
        measured = [rank for rank in of_ranks if isinstance(rank, Measured)]
        if not failures and len(measured) == job.tp_size:
            results[problem] = measured
            continue
        results[problem] = _cause(failures, processes)
        break
    return results


def _loaded(job: Job, rank: int, problem: str) -> Rank | None:
    path = result_path(job.directory, rank, problem)
    return torch.load(path, weights_only=False) if path.exists() else None


def _cause(failures: Sequence[Failure], processes: Sequence[BaseProcess]) -> Failure:
    """When a rank is gone the others fail, too: a lost connection is not the cause."""
    codes = dict(enumerate(process.exitcode for process in processes))
    for rank, code in codes.items():
        if code not in (None, 0, 1):
            return Failure("crashes", f"the process of rank {rank} ended with code {code}", 0.0)
    if failures:
        return min(failures, key=lambda failure: failure.when)
    waiting = [rank for rank, code in codes.items() if code is None]
    return Failure("hangs", f"ranks {waiting} got nothing done any more", 0.0)
