"""Runs that are stopped, or that cannot go on."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import world
from runs import last_checkpoint, records, train, weights
from world import VOCAB_PADDED, layout, run_config

from bgkd_megatron.megatron import build, checkpoint_dir, evaluation, loss, train_loop
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.dataset import SampleDataset
from bgkd_megatron.megatron.errors import RunError
from bgkd_megatron.schedule import Microbatch

Check = Callable[[Path], None]


def checks(world_size: int) -> dict[str, Check]:
    if world_size == 1:
        return {
            "not_finite_is_an_error": not_finite_is_an_error,
            "not_finite_is_skipped": not_finite_is_skipped,
            "batches_without_a_target": batches_without_a_target,
        }
    if world_size == 2:
        return {
            "sigterm_then_resume_is_bitwise": sigterm_then_resume_is_bitwise,
            "sigterm_in_an_evaluation": sigterm_in_an_evaluation,
            "full_disk_is_an_error": full_disk_is_an_error,
        }
    return {}


def not_finite_is_an_error(workspace: Path) -> None:
    config = run_config(workspace, "explodes", optimizer={"lr": 1e30}, checkpoint={"interval": 1})
    with pytest.raises(RunError, match=r"step 2: the (loss|gradient norm) is (nan|inf)"):
        train(config)
    assert last_checkpoint(config).name == "iter_0000001"


def not_finite_is_skipped(workspace: Path) -> None:
    """Steps 2 and 4 have a NaN in the loss: the weights stay, the count is saved and goes on."""
    config = run_config(
        workspace, "skips", training={"not_finite": "skip"}, checkpoint={"interval": 2, "keep": 4}
    )
    original = loss.hybrid_loss
    calls = itertools.count()  # 4 microbatches a step

    def spoilt(*arguments: Any, **options: Any) -> Any:
        losses, stats = original(*arguments, **options)
        if losses.loss.requires_grad and next(calls) // 4 % 2:
            losses = losses._replace(loss=losses.loss * float("nan"))
        return losses, stats

    with mock.patch.object(loss, "hybrid_loss", spoilt):
        train(config)
    steps = [line for line in records(config) if line["kind"] == "train"]
    assert [line["skipped_steps"] for line in steps] == [0, 1, 1, 2]
    assert [np.isfinite(line["grad_norm"]) for line in steps] == [True, False, True, False]
    progress = checkpoint_dir.read_progress(last_checkpoint(config), config)
    assert (progress.iteration, progress.skipped) == (4, 2)
    after = [checkpoint_dir.iteration_dir(config.checkpoint.dir, step) for step in (2, 4)]
    with layout():
        start, second, fourth = (
            weights(path) for path in (workspace / f"student_{VOCAB_PADDED}", *after)
        )
    for name, weight in second.items():
        assert weight.isfinite().all()
        assert not weight.equal(start[name])
        assert not fourth[name].equal(weight)


def batches_without_a_target(workspace: Path) -> None:
    ids = [np.arange(200)]
    world.write_dataset(workspace / "mute", ids, [np.zeros(200, dtype=np.uint8)])
    mute = str(workspace / "mute")
    start = workspace / f"student_{VOCAB_PADDED}"
    config = run_config(workspace, "mute_run", data={"train": [mute]})
    train(config)
    steps = [line for line in records(config) if line["kind"] == "train"]
    assert [line["tokens"] for line in steps] == [0.0] * 4
    assert all("loss" not in line for line in steps)
    with layout():
        before, after = weights(start), weights(last_checkpoint(config))
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
    held_out = run_config(workspace, "mute_valid", data={"valid": {"mute": mute}})
    with pytest.raises(RunError, match="the held-out set 'mute' has no target in all of it"):
        train(held_out)


def sigterm_then_resume_is_bitwise(workspace: Path) -> None:
    """The signal reaches one rank only, in the middle of step 3."""
    settings = {"tensor_parallel": 2}
    whole = run_config(workspace, "run_tp2", parallel=settings)  # ran before
    config = run_config(workspace, "stopped", parallel=settings, checkpoint={"interval": 100})
    with sigterm_at_batch(train_loop, 2):
        train(config)
    assert last_checkpoint(config).name == "iter_0000003"
    assert [r["step"] for r in records(config)] == [0, 1, 2, 3]
    train(config)
    assert records(config) == records(whole)


def sigterm_in_an_evaluation(workspace: Path) -> None:
    """It ends between two global batches; the step before it is saved, and evaluated on restart."""
    settings: dict[str, Any] = {"parallel": {"tensor_parallel": 2}, "evaluation": {"interval": 3}}
    config = run_config(workspace, "stopped_there", **settings, checkpoint={"interval": 100})
    batches = -(-len(valid_samples(config)) // 4)
    with sigterm_at_batch(evaluation, batches):  # in the second evaluation
        train(config)
    assert last_checkpoint(config).name == "iter_0000003"
    assert [(r["kind"], r["step"]) for r in records(config)][-1] == ("train", 3)
    train(config)
    ends = [(r["kind"], r["step"]) for r in records(config)][-3:]
    assert ends == [("valid", 3), ("train", 4), ("valid", 4)]


def valid_samples(config: TrainConfig) -> SampleDataset:
    with layout(config.parallel.tensor_parallel):
        (dataset,) = build.valid_sets(config, build.dataset_factory(config, VOCAB_PADDED)).values()
    return dataset


@contextmanager
def sigterm_at_batch(module: Any, number: int) -> Iterator[None]:
    """Rank 1 gets the signal when `module` asks for its global batch of this number."""
    original = module.global_batch
    count = itertools.count()

    def interrupted(*arguments: Any) -> list[Microbatch]:
        if next(count) == number and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with mock.patch.object(module, "global_batch", interrupted):
        yield


def full_disk_is_an_error(workspace: Path) -> None:
    """The files of rank 1 may not grow; what was saved before stays."""
    settings = {"tensor_parallel": 2}
    config = run_config(workspace, "full", parallel=settings, checkpoint={"interval": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = train_loop.save_checkpoint

    def limited(state: Any, *arguments: Any) -> None:
        if state.iteration == 2 and dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        save(state, *arguments)

    try:
        with (
            mock.patch.object(train_loop, "save_checkpoint", limited),
            pytest.raises(RunError, match="iter_0000002 cannot be written"),
        ):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    assert last_checkpoint(config).name == "iter_0000001"
    train(config)
    assert last_checkpoint(config).name == "iter_0000004"
