"""The commands as a user starts them: exit codes, SIGTERM, messages."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
import pytest
import yaml
from launching import one_thread, run_command, torchrun

TRAIN = ("-m", "bgkd_megatron.train")
EVALUATE = ("-m", "bgkd_megatron.evaluate")


class Job(NamedTuple):
    """A run and what belongs to it."""

    launcher: subprocess.Popen[str]
    output: IO[str]
    processes: list[psutil.Process]
    """the launcher and all that it started"""
    ranks: list[psutil.Process]


@pytest.fixture
def config(run_checks, workspace: Path, tmp_path: Path) -> Path:
    """A run of many steps in tmp_path, on the models and datasets of the checks."""
    run_checks(1)
    settings: dict[str, Any] = {
        "student": {"model_dir": f"{workspace}/student_301"},
        "teacher": {"model_dir": f"{workspace}/teacher_301"},
        "data": {
            "train": [f"{workspace}/masked"],
            "valid": {"held_out": f"{workspace}/plain"},
            "seq_length": 16,
        },
        "parallel": {"tensor_parallel": 2},
        "optimizer": {"lr": 0.01},
        "training": {"global_batch_size": 2, "steps": 1000, "precision": "fp32"},
        "checkpoint": {"dir": f"{tmp_path}/checkpoints", "interval": 2},
        "logging": {"dir": f"{tmp_path}/log"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_sigterm_saves_and_exits_0(config: Path, tmp_path: Path) -> None:
    """As a batch system does it: the signal reaches every process of the job but the launcher."""
    command = torchrun(2, *TRAIN, "--config", config)
    with subprocess.Popen(command, env=one_thread(), stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout is not None
            for line in job.stdout:
                if line.startswith("step 5/"):
                    break
            for process in psutil.Process(job.pid).children(recursive=True):
                process.send_signal(signal.SIGTERM)
            output = job.stdout.read()
            assert job.wait() == 0, output
        finally:
            job.kill()
    assert "SIGTERM: stopped after step" in output
    last = (tmp_path / "checkpoints" / "latest").read_text().strip()
    lines = (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == int(last.removeprefix("iter_")) >= 5
    assert list((tmp_path / "log" / "tensorboard").iterdir())

    checkpoint = tmp_path / "checkpoints" / last
    output_file = tmp_path / "result.json"
    overrides = (f"student.model_dir={checkpoint}", "parallel.tensor_parallel=1")
    overrides += ("checkpoint.dir=/dev/null/x",)  # nothing is written there
    evaluation = run_command(
        torchrun(1, *EVALUATE, "--config", config, "--output", output_file, *overrides)
    )
    assert evaluation.returncode == 0, evaluation.stderr
    assert "Warning" not in evaluation.stderr
    result = json.loads(output_file.read_text())["held_out"]
    assert f"held_out: student NLL {result['nll']:.4f}" in evaluation.stdout
    assert result["forward_kl"] < json.loads(lines[0])["forward_kl"]

    for file in (checkpoint / "weights").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])
    damaged = run_command(command)
    assert damaged.returncode != 0
    assert f": {checkpoint} cannot be read" in damaged.stderr
    assert "exitcode  : 2" in damaged.stderr
    assert "bgkd_megatron/" not in damaged.stderr  # no traceback
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == last


@contextmanager
def job_in_step(step: int, *arguments: str | Path) -> Iterator[Job]:
    """A training run on two ranks that has done so many steps.  Whatever is left of it afterwards
    is killed."""
    with subprocess.Popen(
        torchrun(2, *TRAIN, *arguments),
        env=one_thread(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        processes = [psutil.Process(job.pid)]
        try:
            assert job.stdout is not None
            assert any(line.startswith(f"step {step}/") for line in job.stdout)
            processes += processes[0].children(recursive=True)
            ranks = [p for p in processes[1:] if "bgkd_megatron.train" in p.cmdline()]
            assert len(ranks) == 2
            yield Job(job, job.stdout, processes, ranks)
        finally:
            for process in psutil.wait_procs(processes, timeout=0)[1]:
                process.kill()


def test_killed_rank_ends_the_job(config: Path) -> None:
    """kill -9 of one rank: no process stays, which would keep the output open, and the last
    checkpoint is one that a restart takes."""
    with job_in_step(5, "--config", config) as job:
        # Meanwhile nobody else may save there, not even on another layout.
        second = run_command(
            [sys.executable, *TRAIN, "--config", str(config), "parallel.tensor_parallel=1"]
        )
        assert second.returncode == 2
        holders = "|".join(str(rank.pid) for rank in job.ranks)
        assert re.search(rf"log is in use by process ({holders}) on", second.stderr)
        job.ranks[1].kill()
        output = job.output.read()  # until the last process that could write to it has ended
        assert job.launcher.wait() != 0
        told = r"error: rank 0: RuntimeError in step \d+: .*\. Another rank has died or hangs"
        assert re.search(told, output), output
        assert "Signal 9 (SIGKILL)" in output
        assert not psutil.wait_procs(job.processes, timeout=0)[1]
    stop = run_command(torchrun(2, *TRAIN, "--config", config, "training.global_batch_size=4"))
    assert "training.global_batch_size was 2, now 4" in stop.stderr


def test_hung_rank_ends_the_job(config: Path, tmp_path: Path) -> None:
    """A rank that does nothing any more: the others wait as long as they were told."""
    with job_in_step(3, "--config", config, "parallel.timeout_minutes=0.1") as job:
        job.ranks[1].suspend()
        told = r"error: rank 0: \w+Error in step \d+: .*\. Another rank has died or hangs"
        assert any(re.search(told, line) for line in job.output)
        # torchrun would first wait 30 s for the hung rank.
        for process in job.processes[::-1]:
            process.kill()
    assert (tmp_path / "checkpoints" / "latest").read_text().startswith("iter_")


def test_mistakes_are_told_once(config: Path) -> None:
    process = run_command(torchrun(2, *TRAIN, "--config", config, "data.seq_length=100"))
    assert process.returncode != 0
    assert process.stderr.count("above the student's max_position_embeddings=32") == 1
    # Only torchrun's own report of the exit code has a traceback.
    assert "bgkd_megatron/" not in process.stderr
    assert "exitcode  : 2" in process.stderr


def test_failed_run_is_told_once(config: Path) -> None:
    process = run_command(torchrun(2, *TRAIN, "--config", config, "optimizer.lr=1e30"))
    assert process.returncode != 0
    assert process.stderr.count("error: step 2: the ") == 1
    assert "Warning" not in process.stderr
    assert "bgkd_megatron/" not in process.stderr
    assert "exitcode  : 1" in process.stderr


def test_a_rank_that_fails_alone_is_told(config: Path, tmp_path: Path) -> None:
    """Rank 0 cannot write the pointer; the other ranks wait for it, and torchrun ends them."""
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / ".latest.tmp").mkdir(parents=True)
    process = run_command(torchrun(2, *TRAIN, "--config", config))
    assert process.returncode != 0
    expected = (
        f"error: rank 0: {checkpoints / 'iter_0000002'} cannot be written ([Errno 21] Is a dir"
    )
    assert process.stderr.count(expected) == 1
    assert "IsADirectoryError" not in process.stderr  # no traceback


@pytest.mark.parametrize("output", ["file/result.json", "."])
def test_an_output_that_cannot_be_written_is_told_at_once(
    config: Path, tmp_path: Path, output: str
) -> None:
    (tmp_path / "file").write_text("")
    where = tmp_path / output
    command = [sys.executable, *EVALUATE, "--config", str(config), "--output", str(where)]
    process = run_command([*command, "parallel.tensor_parallel=1"])
    assert process.returncode == 2
    reason = f"{where} is a folder" if output == "." else f"cannot write to {where.parent}"
    assert f"--output: {reason}" in process.stderr
    assert "bgkd_megatron/" not in process.stderr
    assert not (tmp_path / "checkpoints").exists()
