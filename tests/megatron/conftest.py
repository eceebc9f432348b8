"""Runs the checks of `ranks/` on 1, 2 and 3 processes, once each; see ranks/worker.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "ranks" / "worker.py"
TIME_LIMIT = 300  # seconds; ten times what the slowest launch takes on two idle cores
Results = dict[str, str]


def torchrun(processes: int, *arguments: str | Path) -> list[str]:
    """The command line that starts `arguments` on so many processes of this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), *map(str, arguments)),
    ]


def run_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ranks that wait for each other for ever are ended."""
    job = subprocess.Popen(
        command,
        env=one_thread(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = job.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        stdout, stderr = job.communicate()
        stderr += f"\nended after {TIME_LIMIT} s"
    return subprocess.CompletedProcess(command, job.returncode, stdout, stderr)


def one_thread() -> dict[str, str]:
    """The environment; several processes share a few cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, datasets and the runs on them; ranks/world.py says what is where."""
    return tmp_path_factory.mktemp("megatron")


@pytest.fixture(scope="session")
def run_checks(workspace: Path) -> Callable[[int], Results]:
    """Run all checks of a world size; name to "" or to what went wrong.

    The single process comes first: it makes what the others compare with.
    """
    done: dict[int, Results] = {}

    def run(processes: int) -> Results:
        if processes not in done:
            if processes > 1:
                run(1)
            command = torchrun(processes, WORKER, workspace)
            process = run_command(command)
            path = workspace / f"results_{processes}.json"
            if not path.is_file():
                pytest.fail(f"the checks on {processes} processes died:\n{process.stderr[-4000:]}")
            done[processes] = json.loads(path.read_text())
        return done[processes]

    return run
