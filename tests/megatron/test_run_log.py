"""What a run writes into its log folder, and what it keeps of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import load

from bgkd_megatron.megatron.errors import RankError
from bgkd_megatron.megatron.run_log import RunLog

NO_EVENTS = "logging.tensorboard=false"


def test_a_restart_keeps_the_lines_before_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(tmp_path, settings, NO_EVENTS)
    first = {"kind": "valid", "step": 0, "set": "x"}
    steps = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    evaluation_of_the_last_step = {"kind": "valid", "step": 2, "set": "x"}
    foreign: list[object] = [{"kind": "note"}, {"step": "1"}, {"step": 2}, 5, None]
    records = [first, *foreign, *steps[:2], evaluation_of_the_last_step, steps[2]]
    path = config.logging.dir / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes("".join(f"{json.dumps(r)}\n" for r in records).encode() + b'{"kind": "\xff')
    RunLog(config, first_step=2).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [first, *steps[:2]]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_full_disk_is_told(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    config = load(tmp_path, settings, NO_EVENTS)
    config.logging.dir.mkdir()
    (config.logging.dir / name).symlink_to("/dev/full")
    with pytest.raises(RankError, match=r"log cannot be written \(.*No space left on device"):
        RunLog(config, first_step=0).train(1, {"loss": 1.0})


def test_wandb_offline(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Real Weights & Biases without its server: what was logged lies in a file for `wandb sync`,
    under one id before and after a restart."""
    config = load(
        tmp_path, settings, "logging.tensorboard=false", "logging.wandb={project: p, mode: offline}"
    )
    identities = set()
    for first_step in (0, 1):
        log = RunLog(config, first_step)
        log.train(first_step + 1, {"loss": 1.5})
        log.valid(first_step + 1, "held out", {"nll": 2.5})
        log.close()
        identities.add((config.logging.dir / "wandb_run_id").read_text())
    [identity] = identities
    files = list(config.logging.dir.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert files
    recorded = b"".join(file.read_bytes() for file in files)
    assert b"valid/held out/nll" in recorded
    assert b"train/loss" in recorded
