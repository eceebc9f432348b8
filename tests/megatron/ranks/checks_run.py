"""Whole runs: independent of the layout, interrupted and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import world
from runs import last_checkpoint, records, train, weights
from world import VOCAB_PADDED, layout, run_config

from bgkd_megatron.megatron import checkpoint_dir, train_loop
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.errors import RankError
from bgkd_megatron.megatron.evaluation import evaluate_run
from bgkd_megatron.megatron.run_log import METRICS_FILE

Check = Callable[[Path], None]
REFERENCE = "run_1"


def checks(world_size: int) -> dict[str, Check]:
    if world_size == 1:
        return {
            "run_learns": run_learns,
            "resume_is_bitwise": resume_is_bitwise,
            "evaluation_of_a_checkpoint": evaluation_of_a_checkpoint,
            "bf16_run": bf16_run,
            "finished_run_is_evaluated_again": finished_run_is_evaluated_again,
            "fresh_student_without_teacher": fresh_student_without_teacher,
            "hard_only_run_is_measured_against_the_teacher": hard_only_run,
        }
    found: dict[str, Check] = {
        f"run_on_tp_{world_size}": partial(
            same_run, name=f"run_tp{world_size}", settings={"tensor_parallel": world_size}
        ),
        "resume_on_another_layout": resume_on_another_layout,
    }
    if world_size == 2:
        found |= {
            "run_on_dp_2": partial(same_run, name="run_dp2", settings={"tensor_parallel": 1}),
            "run_on_sequence_parallel": partial(
                same_run,
                name="run_sp",
                settings={"tensor_parallel": 2, "sequence_parallel": True},
            ),
        }
    return found


def assert_same_run(actual: TrainConfig, expected: TrainConfig, start: Path) -> None:
    """Equal up to the order of floating-point sums: every metric, and how the weights moved."""
    ours, theirs = records(actual), records(expected)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            if isinstance(value, float):
                assert abs(a[key] - value) <= 1e-4 * max(abs(value), 1e-3), (key, a, b)
            else:
                assert a[key] == value, (key, a, b)
    with layout():
        before = weights(start)
        for step in (2, 4):
            moved, expected_moved = (
                weights(checkpoint_dir.iteration_dir(run.checkpoint.dir, step))
                for run in (actual, expected)
            )
            for name, weight in expected_moved.items():
                distance = (weight - before[name]).abs().max()
                assert distance > 0.0, f"{name} has not moved, so nothing is compared"
                error = (moved[name] - weight).abs().max()
                assert error <= 1e-3 * distance, (step, name, error, distance)


def run_learns(workspace: Path) -> None:
    config = run_config(workspace, REFERENCE)
    with layout():
        teacher = weights(workspace / f"teacher_{VOCAB_PADDED}")
        train_loop.train(config)
        after = weights(workspace / f"teacher_{VOCAB_PADDED}")
        assert all(torch.equal(after[name], w) for name, w in teacher.items())
    lines = records(config)
    kinds = [(r["kind"], r["step"]) for r in lines]
    steps = [("train", step) for step in range(1, 5)]
    assert kinds == [("valid", 0), *steps, ("valid", 4)]
    assert lines[-1]["forward_kl"] < lines[0]["forward_kl"]
    names = "loss hard_loss soft_loss soft_weight forward_kl reverse_kl student_entropy "
    names += "teacher_entropy agreement accuracy nll teacher_nll grad_norm lr"
    assert set(names.split()) <= lines[1].keys()
    saved = sorted(p.name for p in config.checkpoint.dir.iterdir())
    assert saved == ["iter_0000002", "iter_0000004", "latest"]


def same_run(workspace: Path, name: str, settings: dict[str, Any]) -> None:
    """Four steps of four samples with unequal masks, cut into microbatches as the layout asks."""
    config = run_config(workspace, name, parallel=settings)
    train(config)
    start = workspace / f"student_{VOCAB_PADDED}"
    assert_same_run(config, run_config(workspace, REFERENCE), start)


def keep_half(config: TrainConfig, other: TrainConfig) -> None:
    """Make `config` a run that died after step 2 of `other`, in the middle of saving step 3."""
    if dist.get_rank() == 0:
        root = config.checkpoint.dir
        middle = checkpoint_dir.iteration_dir(other.checkpoint.dir, 2)
        shutil.copytree(middle, root / middle.name)
        checkpoint_dir.mark_latest(root, root / middle.name)
        (checkpoint_dir.iteration_dir(root, 4) / "weights").mkdir(parents=True)
        shutil.copy(other.logging.dir / METRICS_FILE, config.logging.dir)
        with (config.logging.dir / METRICS_FILE).open("a") as file:
            file.write('{"kind": "train", "st')
    dist.barrier()


def resume_is_bitwise(workspace: Path) -> None:
    whole, resumed = run_config(workspace, REFERENCE), run_config(workspace, "resumed")
    keep_half(resumed, whole)
    train(resumed)
    assert records(resumed) == records(whole)
    with layout():
        ours, theirs = weights(last_checkpoint(resumed)), weights(last_checkpoint(whole))
        assert all(torch.equal(ours[name], w) for name, w in theirs.items())


def resume_on_another_layout(workspace: Path) -> None:
    """The second half of the single process's run, on tensor-parallel ranks."""
    whole = run_config(workspace, REFERENCE)
    size = dist.get_world_size()
    resumed = run_config(workspace, f"resumed_{size}", parallel={"tensor_parallel": size})
    keep_half(resumed, whole)
    train(resumed)
    assert_same_run(resumed, whole, workspace / f"student_{VOCAB_PADDED}")


def evaluation_of_a_checkpoint(workspace: Path) -> None:
    """A checkpoint is a model directory: evaluating it gives the run's last line."""
    run = run_config(workspace, REFERENCE)
    student = {"model_dir": last_checkpoint(run)}
    config = run_config(workspace, "evaluated", student=student)
    output = workspace / "evaluated" / "result.json"
    with layout():
        evaluate_run(config, output)
    expected = {k: v for k, v in records(run)[-1].items() if k not in ("kind", "step", "set")}
    assert json.loads(output.read_text()) == {"held out": expected}
    full_disk = output.with_name("full.json")
    full_disk.symlink_to("/dev/full")
    with layout(), pytest.raises(RankError, match=r"full\.json cannot be written"):
        evaluate_run(config, full_disk)


def bf16_run(workspace: Path) -> None:
    """bf16 weights with fp32 master weights, saved and continued."""
    training = {"precision": "bf16"}
    whole = run_config(workspace, "bf16", training=training)
    train(whole)
    lines = records(whole)
    assert lines[-1]["forward_kl"] < lines[0]["forward_kl"]
    exact = records(run_config(workspace, REFERENCE))
    assert lines[1]["loss"] != exact[1]["loss"]
    assert abs(lines[1]["loss"] - exact[1]["loss"]) < 0.02 * exact[1]["loss"]
    resumed = run_config(workspace, "bf16_resumed", training=training)
    keep_half(resumed, whole)
    train(resumed)
    assert records(resumed) == lines


def finished_run_is_evaluated_again(workspace: Path) -> None:
    """It may have been stopped in its last evaluation, which comes after its last save."""
    config = run_config(workspace, "finished")
    train(config)
    whole = records(config)
    train(config)
    assert records(config) == whole
    # A run from the start in the same folder keeps the lines of the old one.
    shutil.rmtree(config.checkpoint.dir)
    train(config)
    assert records(config) == whole
    assert len((config.logging.dir / "metrics.1.jsonl").read_text().splitlines()) == len(whole)


def fresh_student_without_teacher(workspace: Path) -> None:
    config = run_config(
        workspace,
        "fresh",
        student={"model_dir": None, "architecture": world.student_config(VOCAB_PADDED)},
        objective={"weighting": "static", "soft_weight": 0.0},
    )
    config = config.model_copy(update={"teacher": None})
    train(config)
    lines = records(config)
    assert lines[-1]["nll"] < lines[0]["nll"]
    assert "teacher_nll" not in lines[-1]
    assert "forward_kl" not in lines[1]


def hard_only_run(workspace: Path) -> None:
    """Training does not read the teacher; the held-out sets are compared with it."""
    hard_only = {"weighting": "static", "soft_weight": 0.0}
    config = run_config(
        workspace, "hard_only", objective=hard_only, evaluation={"interval": 2, "batches": 1}
    )
    train(config)
    lines = records(config)
    assert [r["step"] for r in lines if r["kind"] == "valid"] == [0, 2, 4]
    for line in lines:
        assert ("forward_kl" in line) == (line["kind"] == "valid")
        assert abs(line["loss"] - line["nll"]) < 1e-6
    whole = records(run_config(workspace, REFERENCE))
    assert lines[0]["tokens"] < whole[0]["tokens"]  # one batch of four samples
