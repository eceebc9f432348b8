"""One training run, started the way a user starts it: torchrun and a YAML file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bgkd_megatron.megatron.checkpoint_dir import iteration_dir
from bgkd_megatron.megatron.run_log import METRICS_FILE
from pipeline.stages import stage

if TYPE_CHECKING:
    from pipeline.setup import Setup

RANKS = 3  # SmolLM2 has 9 heads in 3 groups: tensor parallelism can be 3, but not 2 or 4


class TrainingError(RuntimeError):
    """Training ended with an error, which it has printed."""


@dataclass(frozen=True)
class Run:
    """A run of so many steps, and where it writes."""

    directory: Path
    steps: int

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, which is a model directory too."""
        return iteration_dir(self.directory / "checkpoints", self.steps)

    @property
    def metrics(self) -> Path:
        """JSON lines of the training and held-out metrics."""
        return self.directory / "logs" / METRICS_FILE


def train(
    what: str,
    setup: Setup,
    run: Run,
    settings: Mapping[str, object] | None = None,
    *,
    with_teacher: bool = True,
) -> None:
    """Train `setup`'s student unless `run` is complete; an interrupted run continues.

    settings: more of the configuration than what `setup` and `run` say.  Raises TrainingError.
    """
    overrides: dict[str, object] = {
        "student.model_dir": setup.student,
        "data.train": [str(setup.dataset(domain, "train")) for domain in setup.domains],
        **{f"data.valid.{d}": setup.dataset(d, "heldout") for d in setup.domains},
        "training.steps": run.steps,
        "checkpoint.dir": run.directory / "checkpoints",
        "logging.dir": run.directory / "logs",
        **(settings or {}),
    }
    if with_teacher:
        overrides["teacher.model_dir"] = setup.teacher
    # The last file inside a checkpoint.
    stage(what, run.checkpoint / "run.json", partial(_torchrun, setup.config, overrides))


def _torchrun(config: Path, overrides: Mapping[str, object]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={RANKS}", "-m", "bgkd_megatron.train", f"--config={config}"]
    command += [f"{key}={_yaml(value)}" for key, value in overrides.items()]
    threads = max(1, (os.cpu_count() or 1) // RANKS)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    # In a session of its own: Ctrl-C reaches this process alone, which then asks the ranks for an
    # orderly end.  They save a checkpoint before they go.
    with subprocess.Popen(command, env=environment, start_new_session=True) as job:
        try:
            status = job.wait()
        except KeyboardInterrupt:
            for process in psutil.Process(job.pid).children() or [job]:
                process.terminate()
            job.wait()
            raise
    if status != 0:
        raise TrainingError(f"training failed with exit status {status}: see its message above")


def _yaml(value: object) -> str:
    """`value` in YAML; JSON is a part of it."""
    return json.dumps(str(value) if isinstance(value, Path) else value)
