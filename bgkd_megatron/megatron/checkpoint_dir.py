"""The folder of a run's checkpoints: names, the pointer to the latest one, clearing old ones.

    DIR/latest                 "iter_0000040", written after that checkpoint is complete
    DIR/iter_0000040/run.json  Progress
    DIR/iter_0000040/          a model directory whose weights/ also holds the training state

Free of torch and Megatron.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.settings import explain

__all__ = ["Progress", "clear_old", "iteration_dir", "latest", "mark_latest", "read_progress"]

_LATEST = "latest"
_RUN_FILE = "run.json"
_NAME = re.compile(r"iter_(\d{7,})")


class Progress(BaseModel):
    """How far a run is, and what it was run with."""

    model_config = ConfigDict(frozen=True)

    iteration: int
    """steps done"""
    skipped: int
    """steps whose loss or gradient was not finite"""
    consumed_samples: int
    world_size: int
    layout: dict[str, Any]
    """the sizes of TrainConfig.parallel"""
    distributed_optimizer: bool
    trajectory: dict[str, Any]
    """TrainConfig.trajectory()"""

    def write(self, checkpoint: Path) -> None:
        """Write run.json."""
        (checkpoint / _RUN_FILE).write_text(self.model_dump_json(indent=2) + "\n")


def iteration_dir(root: Path, iteration: int) -> Path:
    """Folder of the checkpoint after `iteration` steps."""
    return root / f"iter_{iteration:07d}"


def latest(root: Path) -> Path | None:
    """The last complete checkpoint below `root`.  Raises ConfigError when the pointer is no use."""
    pointer = root / _LATEST
    if not os.path.lexists(pointer):
        return None
    try:
        name = pointer.read_text(errors="replace").strip()
        if _NAME.fullmatch(name) and (root / name / _RUN_FILE).is_file():
            return root / name
        problem = f"names {name[:40]!r}, which is not a checkpoint"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ConfigError(
        f"{pointer} {problem}: write the name of a checkpoint that is there into it, or remove it "
        "to start over"
    )


def read_progress(checkpoint: Path, config: TrainConfig) -> Progress:
    """The progress of `checkpoint`.

    Raises ConfigError when it cannot be read, or when `config` belongs to another run.
    """
    path = checkpoint / _RUN_FILE
    try:
        progress = Progress.model_validate_json(path.read_bytes())
        if checkpoint.name != iteration_dir(checkpoint.parent, progress.iteration).name:
            raise ValueError(f"it is of iteration {progress.iteration}")
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigError(
            f"{path} is damaged ({explain(error)}): write the name of an older "
            f"checkpoint into {checkpoint.parent / _LATEST}, or remove that to start over"
        ) from error
    now = config.trajectory()
    changes = [
        f"{key} was {progress.trajectory.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(now.keys() | progress.trajectory.keys())
        if now.get(key) != progress.trajectory.get(key)
    ]
    if changes:
        raise ConfigError(
            f"{checkpoint} belongs to another run ({'; '.join(changes)}): restore these settings "
            "to continue it, or choose a new checkpoint.dir and start from "
            f"student.model_dir={checkpoint}"
        )
    if progress.distributed_optimizer != config.parallel.distributed_optimizer:
        raise ConfigError(
            f"{checkpoint} holds the optimizer's states as of "
            f"parallel.distributed_optimizer={str(progress.distributed_optimizer).lower()}: "
            "restore this setting to continue it"
        )
    return progress


def mark_latest(root: Path, checkpoint: Path) -> None:
    """Point to `checkpoint`, atomically: a crash leaves the old pointer or the new one."""
    temporary = root / f".{_LATEST}.tmp"
    temporary.write_text(checkpoint.name + "\n")
    os.replace(temporary, root / _LATEST)


def clear_old(root: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest` and the `keep` - 1 checkpoints before it.

    Those with a higher number stay: a run that died while it saved, or that was set back, left
    them, and the user may still want them.  One that cannot be removed, because its files are
    in use, say, is no reason to end a run: the next call tries again.
    """
    found = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    checkpoints = sorted((int(match[1]), path) for match, path in found if match)
    position = [path for _, path in checkpoints].index(newest)
    for _, checkpoint in checkpoints[: max(0, position + 1 - keep)]:
        shutil.rmtree(checkpoint, ignore_errors=True)
