"""The Slurm script with stand-ins for Slurm's commands: two tasks on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import one_thread

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "distil.sbatch"
STEPS = 60
# srun starts a process for each task, with Slurm's variables, and notes their numbers for scancel.
COMMANDS = {
    "srun": """#!/bin/bash
shift # --kill-on-bad-exit=1
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    echo $! >> "$STAND_IN/tasks"
done
for task in $(jobs -p); do wait "$task" || exit; done
""",
    "scancel": """#!/bin/bash
[ "$*" = "--signal=TERM $SLURM_JOB_ID.0" ] && kill -TERM $(cat "$STAND_IN/tasks")
""",
    "scontrol": """#!/bin/bash
case $1 in show) echo 127.0.0.1 ;; requeue) echo "$2" >> "$STAND_IN/requeued" ;; esac
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    python = Path(sys.executable).parent
    return {
        **one_thread(),
        "PATH": f"{tmp_path}:{python}:{os.environ['PATH']}",
        "CLUSTER": "true",
        "STAND_IN": str(tmp_path),
        "SLURM_JOB_ID": str(20000 + os.getpid() % 20000),
        "SLURM_JOB_NODELIST": "node[1]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }


def test_time_limit_then_requeue(
    run_checks: Any, workspace: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The batch shell is warned before the time limit; the run saves, and the job comes again."""
    run_checks(1)
    settings: dict[str, Any] = {
        "student": {"model_dir": f"{workspace}/student_301"},
        "teacher": {"model_dir": f"{workspace}/teacher_301"},
        "data": {"train": [f"{workspace}/masked"], "seq_length": 16},
        "parallel": {"tensor_parallel": 2},
        "optimizer": {"lr": 0.01},
        "training": {"global_batch_size": 2, "steps": STEPS, "precision": "fp32"},
        "checkpoint": {"dir": f"{tmp_path}/checkpoints"},
        "logging": {"dir": f"{tmp_path}/log"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = ["bash", str(SCRIPT), str(tmp_path / "run.yaml"), "logging.tensorboard=false"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        lines = []
        for line in job.stdout:
            lines.append(line)
            if line.startswith("step 3/"):
                job.send_signal(signal.SIGTERM)
                break
        lines += job.stdout.readlines()
    output = "".join(lines)
    assert job.returncode == 0, output
    assert "SIGTERM: stopped after step" in output
    requeued = tmp_path / "requeued"
    assert requeued.read_text().split() == [environment["SLURM_JOB_ID"]]
    latest = tmp_path / "checkpoints" / "latest"
    assert latest.read_text() < f"iter_{STEPS:07d}"
    (tmp_path / "tasks").unlink()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"of {STEPS} steps are done" in again.stdout
    assert latest.read_text().strip() == f"iter_{STEPS:07d}"
    assert len(requeued.read_text().split()) == 1
    records = (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()
    steps = [r["step"] for r in map(json.loads, records) if r["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_a_failed_run_is_not_queued_again(tmp_path: Path, environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), str(tmp_path / "none.yaml")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("none.yaml") == 1
    assert not (tmp_path / "requeued").exists()
