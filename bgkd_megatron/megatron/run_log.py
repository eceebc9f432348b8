"""What a run leaves in its log folder: its configuration, JSON lines, and what TensorBoard and
Weights & Biases read."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from bgkd_megatron.megatron.config import TrainConfig, WandbConfig
from bgkd_megatron.megatron.errors import writing

__all__ = ["METRICS_FILE", "RunLog"]

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes config.yaml, metrics.jsonl, tensorboard/ and wandb/ in logging.dir.  For one process
    of a run.

    One JSON object a line, {"kind": "train", "step": 1, "loss": ...} or {"kind": "valid", "step":
    0, "set": NAME, "nll": ...}.  Losses, divergences and entropies are in nats; every metric is a
    mean over the tokens of the step or the set.

    first_step: steps done before.  What an interrupted run logged after them is removed, for those
    steps come again, and so does the evaluation of the last of them.  A run from the start moves
    the lines of an earlier one to metrics.1.jsonl, metrics.2.jsonl, ...
    Every method raises RankError when its files cannot be written.
    """

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        self._directory = directory = config.logging.dir
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (directory / "config.yaml").write_text(settings)
            path = directory / METRICS_FILE
            if first_step == 0:
                _move_away(path)
            else:
                _keep_until(path, first_step)
            self._file = path.open("a")
            self._viewers: list[_Viewer] = []
            if config.logging.tensorboard:
                self._viewers.append(_TensorBoard(directory / "tensorboard", first_step))
            if config.logging.wandb is not None:
                self._viewers.append(_Wandb(config, config.logging.wandb))

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training step `step`; the first is 1."""
        self._write({"kind": "train", "step": step}, metrics, "train")

    def valid(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the held-out set `name` after `step` steps."""
        self._write({"kind": "valid", "step": step, "set": name}, metrics, f"valid/{name}")

    def close(self) -> None:
        """Flush and close the files."""
        with writing(self._directory):
            self._file.close()
            for viewer in self._viewers:
                viewer.close()

    def _write(self, head: dict[str, Any], metrics: Mapping[str, float], group: str) -> None:
        with writing(self._directory):
            self._file.write(json.dumps({**head, **metrics}) + "\n")
            self._file.flush()
            scalars = {f"{group}/{name}": value for name, value in metrics.items()}
            for viewer in self._viewers:
                viewer.add(head["step"], scalars)


class _Viewer(Protocol):
    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._events: Any = SummaryWriter(directory, purge_step=first_step + 1)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._events.close()


class _Wandb:
    """One run of Weights & Biases for all restarts of this one: its id lies in logging.dir."""

    def __init__(self, config: TrainConfig, settings: WandbConfig) -> None:
        import wandb  # slow to import, and optional

        directory = config.logging.dir
        identity = directory / "wandb_run_id"
        if not identity.is_file():
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or directory.name,
            mode=settings.mode,
            id=identity.read_text().strip(),
            resume="allow",
            dir=directory,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )
        # Steps come again after a restart, which wandb's own counter would refuse.
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        self._run.finish()


def _move_away(path: Path) -> None:
    if path.is_file():
        names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def _keep_until(path: Path, step: int) -> None:
    """Remove what comes after training step `step`, and what no run has written."""
    if not path.is_file():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line for line in lines if _comes_before(line, step)))
    os.replace(temporary, path)


def _comes_before(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["step"] < step or (record["step"] == step and record["kind"] == "train")
    except (LookupError, TypeError, ValueError):  # cut short by a crash, or not a record
        return False
