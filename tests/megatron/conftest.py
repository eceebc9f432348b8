"""Runs the checks of `ranks/` on 1, 2 and 3 processes, once each; see ranks/worker.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import run_command, torchrun
from run_files import write_run

WORKER = Path(__file__).parent / "ranks" / "worker.py"
Results = dict[str, str]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """The settings of a run without a mistake, for 6 processes; see run_files.py."""
    return write_run(tmp_path)


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
