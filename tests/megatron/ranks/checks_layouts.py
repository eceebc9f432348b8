"""Runs on every kind of layout: losses, metrics and weights are those of the single process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from checks_run import REFERENCE, assert_same_run
from runs import train
from world import VOCAB_PADDED, run_config

Check = Callable[[Path], None]
SHARDED = {"distributed_optimizer": True}
OVERLAP = {"distributed_optimizer": True, "overlap": True}
TP_SP = {"tensor_parallel": 2, "sequence_parallel": True}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "pp2": {"pipeline_parallel": 2},
        "pp2_vp2": {"pipeline_parallel": 2, "virtual_pipeline": 2},
        "cp2": {"context_parallel": 2},
        "dp2_sharded": SHARDED,
        "dp2_overlap": OVERLAP,
    },
    4: {
        "tp2_sp_pp2": {**TP_SP, "pipeline_parallel": 2},
        "tp2_sp_cp2": {**TP_SP, "context_parallel": 2},
        "pp2_vp2_dp2": {"pipeline_parallel": 2, "virtual_pipeline": 2, **OVERLAP},
        "pp2_cp2": {"pipeline_parallel": 2, "context_parallel": 2},
        "pp4": {"pipeline_parallel": 4},
        "tp2_dp2": {**TP_SP, **OVERLAP},
    },
}


def checks(world_size: int) -> dict[str, Check]:
    return {
        f"run_on_{name}": partial(same_run, name=name, sizes=sizes)
        for name, sizes in LAYOUTS.get(world_size, {}).items()
    }


def same_run(workspace: Path, name: str, sizes: dict[str, Any]) -> None:
    """Four steps of four samples with unequal masks."""
    config = run_config(workspace, name, parallel=sizes)
    train(config)
    start = workspace / f"student_{VOCAB_PADDED}"
    assert_same_run(config, run_config(workspace, REFERENCE), start)
