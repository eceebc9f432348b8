"""The plan of a run, printed without processes, Megatron or torch's devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_files import STUDENT, load

from bgkd_megatron import train
from bgkd_megatron.megatron.config import ParallelConfig
from bgkd_megatron.megatron.sizes import rank_sizes


def test_plan(tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, settings)
    config = ["--config", str(tmp_path / "run.yaml"), "--dry-run"]
    layout = ["parallel.pipeline_parallel=2", "training.global_batch_size=12"]
    assert train.main([*config, "--world-size", "12", *layout]) == 0
    output = capsys.readouterr().out
    assert "12 = tensor 3 x pipeline 2 x context 1 x data 2" in output
    assert "12 sequences of 32 tokens = 384 tokens, in 6 microbatches of 1" in output
    assert "1 + 1" in output
    assert not (tmp_path / "log").exists()  # nothing is written
    assert not (tmp_path / "checkpoints").exists()
    assert train.main([*config, "--world-size", "4"]) == 2
    assert "does not divide the 4 processes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main([*config[:2], "--world-size", "4"])


def test_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    """bfloat16: 2 bytes a weight, 4 of its gradient, 12 of the optimizer's states, which the
    distributed optimizer cuts; the teacher's states are of all microbatches, or of those ahead."""

    def sizes(*overrides: str) -> Any:
        config = load(tmp_path, settings, "parallel.pipeline_parallel=2", *overrides)
        return rank_sizes(config, STUDENT, STUDENT, 12)[-1]

    whole = sizes()
    assert whole.weights == 2 * (whole.student_parameters + whole.teacher_parameters)
    assert whole.gradients == 4 * whole.student_parameters
    assert whole.optimizer == 12 * whole.student_parameters
    assert whole.logits == 2 * 32 * 128 * 2  # 300 tokens are padded to 3 * 128
    assert whole.teacher_states == 2 * 32 * 48 * 2  # 4 sequences on 2 data-parallel ranks
    assert sizes("parallel.distributed_optimizer=true").optimizer == whole.optimizer // 2
    assert sizes("teacher.microbatches_ahead=1").teacher_states == whole.teacher_states // 2
    assert sizes("teacher.offload=true").teacher_states == whole.teacher_states // 2
    assert whole.total > whole.weights + whole.gradients + whole.optimizer
    assert ParallelConfig(pipeline_parallel=2, virtual_pipeline=3).stages == 6
