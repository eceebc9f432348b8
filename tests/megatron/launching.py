"""Starting commands on several processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

TIME_LIMIT = 900  # seconds; several times what the slowest launch takes on two idle cores


def torchrun(processes: int, *arguments: str | Path) -> list[str]:
    """The command line that starts `arguments` on so many processes of this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), *map(str, arguments)),
    ]


def run_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ranks that wait for each other for ever are ended."""
    job = subprocess.Popen(
        command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stdout, stderr = job.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        for process in psutil.Process(job.pid).children(recursive=True):
            process.kill()
        job.kill()
        stdout, stderr = job.communicate()
        stderr += f"\nended after {TIME_LIMIT} s"
    return subprocess.CompletedProcess(command, job.returncode, stdout, stderr)


def one_thread() -> dict[str, str]:
    """The environment; several processes share a few cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
