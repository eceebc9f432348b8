"""What a run leaves in its log folder: JSON lines and TensorBoard events."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["METRICS_FILE", "RunLog"]

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes DIR/metrics.jsonl and DIR/tensorboard.  For one process of the run.

    One JSON object a line, {"kind": "train", "step": 1, "loss": ...} or {"kind": "valid", "step":
    0, "set": NAME, "nll": ...}.  Losses, divergences and entropies are in nats; every metric is a
    mean over the tokens of the step or the set.

    first_step: steps done before.  What an interrupted run logged after them is removed, for those
    steps come again, and so does the evaluation of the last of them.  A run from the start moves
    the lines of an earlier one to metrics.1.jsonl, metrics.2.jsonl, ...
    """

    def __init__(self, directory: Path, first_step: int, tensorboard: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / METRICS_FILE
        if first_step == 0:
            _move_away(path)
        else:
            _keep_until(path, first_step)
        self._file = path.open("a")
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._events = SummaryWriter(directory / "tensorboard", purge_step=first_step + 1)

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training step `step`; the first is 1."""
        self._write({"kind": "train", "step": step}, metrics, "train")

    def valid(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the held-out set `name` after `step` steps."""
        self._write({"kind": "valid", "step": step, "set": name}, metrics, f"valid/{name}")

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def _write(self, head: dict[str, Any], metrics: Mapping[str, float], group: str) -> None:
        self._file.write(json.dumps({**head, **metrics}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(f"{group}/{name}", value, head["step"])


def _move_away(path: Path) -> None:
    if path.is_file():
        names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def _keep_until(path: Path, step: int) -> None:
    """Remove what comes after training step `step`; a line cut short by a crash goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] < step or (record["step"] == step and record["kind"] == "train"):
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
