"""Runs many test cases in one launch of gloo processes.

Starting processes and importing torch takes seconds, a case takes milliseconds: so each world size
is launched once, runs all cases, and tells for each what failed on which rank.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

Case = Callable[[dist.ProcessGroup], None]
"""Called on every rank with a group of its own; fails by raising."""

# A rank that fails leaves the others waiting in its collective. Much longer than any case takes.
_CASE_TIMEOUT = datetime.timedelta(seconds=20)
_LAUNCH_TIMEOUT = 300.0


def run_cases(world_size: int, cases: Mapping[str, Case]) -> dict[str, str]:
    """Failure report of each case, empty if it passed on all ranks of a group of `world_size`.

    cases: functions that a spawned process can import. Raises RuntimeError when a rank dies.
    """
    with tempfile.TemporaryDirectory() as directory:
        context = spawn(
            _worker,
            args=(world_size, dict(cases), directory),
            nprocs=world_size,
            join=False,
        )
        deadline = time.monotonic() + _LAUNCH_TIMEOUT
        while not context.join(timeout=1.0):  # returns whenever one process ends
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise RuntimeError(f"{world_size} ranks did not end in {_LAUNCH_TIMEOUT:.0f} s")
        reports = [
            json.loads((Path(directory) / f"rank{rank}.json").read_text())
            for rank in range(world_size)
        ]
    return {name: "\n".join(filter(None, (report[name] for report in reports))) for name in cases}


def _worker(rank: int, world_size: int, cases: dict[str, Case], directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",  # needs no free port
        rank=rank,
        world_size=world_size,
        timeout=3 * _CASE_TIMEOUT,
    )
    failures = {}
    for name, case in cases.items():
        # A fresh group each: what a failed case leaves behind cannot disturb the next.
        group = dist.new_group(timeout=_CASE_TIMEOUT)
        try:
            case(group)
            failures[name] = ""
        except (Exception, pytest.fail.Exception):
            failures[name] = f"rank {rank} of {world_size}: {traceback.format_exc(limit=-3)}"
        dist.barrier()  # of the world: waits for the slowest rank, or for its timeout
    (Path(directory) / f"rank{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
