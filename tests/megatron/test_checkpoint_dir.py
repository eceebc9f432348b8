"""The folder of checkpoints: the latest one, whose it is, which are cleared."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from run_files import load

from bgkd_megatron.megatron import checkpoint_dir
from bgkd_megatron.megatron.errors import ConfigError


def test_checkpoint_of_another_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(tmp_path, settings)
    root = config.checkpoint.dir
    assert checkpoint_dir.latest(root) is None
    checkpoint = checkpoint_dir.iteration_dir(root, 5)
    checkpoint.mkdir(parents=True)
    checkpoint_dir.Progress(
        iteration=5,
        skipped=0,
        consumed_samples=20,
        world_size=6,
        layout={"tensor_parallel": 3},
        distributed_optimizer=False,
        trajectory=config.trajectory(),
    ).write(checkpoint)
    checkpoint_dir.mark_latest(root, checkpoint)
    assert checkpoint_dir.latest(root) == checkpoint
    # The layout, paths and intervals may change; what a step computes may not.
    free = load(
        tmp_path,
        settings,
        "parallel.tensor_parallel=1",
        "checkpoint.interval=7",
        "training.micro_batch_size=1",
    )
    assert checkpoint_dir.read_progress(checkpoint, free).iteration == 5
    changed = load(tmp_path, settings, "training.steps=20", "data.seq_length=16")
    with pytest.raises(ConfigError, match=r"training\.steps was 10, now 20") as error:
        checkpoint_dir.read_progress(checkpoint, changed)
    assert "data.seq_length was 32, now 16" in str(error.value)
    sharded = load(tmp_path, settings, "parallel.distributed_optimizer=true")
    with pytest.raises(ConfigError, match=r"as of parallel\.distributed_optimizer=false: restore"):
        checkpoint_dir.read_progress(checkpoint, sharded)
    progress = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps({**progress, "iteration": 4}))
    with pytest.raises(ConfigError, match=r"damaged \(it is of iteration 4\)"):
        checkpoint_dir.read_progress(checkpoint, config)
    (checkpoint / "run.json").write_text('{"iteration": 5')
    with pytest.raises(ConfigError, match=r"run\.json is damaged .* older checkpoint"):
        checkpoint_dir.read_progress(checkpoint, config)
    for pointer in (b"iter_0000009", b"\xff\x00", b"", b"..", b"/"):
        (root / "latest").write_bytes(pointer)
        with pytest.raises(ConfigError, match="which is not a checkpoint"):
            checkpoint_dir.latest(root)
    (root / "latest").write_text("iter_" + "1" * 300)
    with pytest.raises(ConfigError, match=r"latest cannot be read \(File name too long\): write"):
        checkpoint_dir.latest(root)


def test_a_pointer_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("nothing")
    with pytest.raises(ConfigError, match=r"latest cannot be read \(No such file .* start over"):
        checkpoint_dir.latest(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(ConfigError, match=r"latest cannot be read \(Is a directory\)"):
        checkpoint_dir.latest(tmp_path)


def test_old_checkpoints_are_cleared(tmp_path: Path) -> None:
    for name in ("iter_0000002", "iter_9999999", "iter_10000000", "iter_0000009", "notes"):
        (tmp_path / name).mkdir()
    checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_10000000", keep=2)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"iter_9999999", "iter_10000000", "notes"}


def test_the_checkpoint_just_saved_is_never_cleared(tmp_path: Path) -> None:
    """A run that died while it saved step 100 went back to 50 and was stopped after 60."""
    for name in ("iter_0000050", "iter_0000060", "iter_0000100"):
        (tmp_path / name).mkdir()
    checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_0000060", keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"iter_0000060", "iter_0000100"}


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network disk a folder stays as long as somebody has one of its files open."""
    for name in ("iter_0000001", "iter_0000002"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as busy:
        busy.setattr("os.rmdir", Mock(side_effect=OSError(errno.ENOTEMPTY, "not empty")))
        checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_0000002", keep=1)
    checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_0000002", keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["iter_0000002"]
