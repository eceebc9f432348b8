"""Training checkpoints: model, optimizer, schedule, random generators and progress.

Written with megatron.core.dist_checkpointing, so a run may continue on another number of ranks; on
the same layout it continues bit by bit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from bgkd_megatron.megatron import checkpoint_dir
from bgkd_megatron.megatron.checkpoint_dir import Progress
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.errors import ConfigError, writing
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.optimizer import load_optimizer, sharded_optimizer
from bgkd_megatron.megatron.weights import (
    LAYOUT,
    load_pieces,
    read_weights,
    save_weights,
    sharded_pieces,
    write_model_files,
)

__all__ = ["TrainState", "load_checkpoint", "save_checkpoint"]


@dataclass
class TrainState:
    """What changes in the course of a run."""

    model: list[DistributedDataParallel]
    """the pieces of the student on this rank"""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    iteration: int = 0
    """steps done"""
    skipped: int = 0
    """those of them whose loss or gradient was not finite"""


def save_checkpoint(
    state: TrainState, config: TrainConfig, model_config: ModelConfig, tokenizer: Path | None
) -> None:
    """Write a checkpoint of an iteration that has none, point to it, clear old ones.  Collective.

    Raises RunError (on all ranks) or RankError when it cannot be written; the latest checkpoint is
    then what it was.
    """
    for piece in state.model:
        if piece.ddp_config.overlap_param_gather:  # else the next forward would gather them
            piece.start_param_sync(force_sync=True)
    root = config.checkpoint.dir
    target = checkpoint_dir.iteration_dir(root, state.iteration)
    first_rank = dist.get_rank() == 0
    extras = {"rng": _rng_state(), LAYOUT: model_config.weight_layout()}
    with writing(target):
        if first_rank and target.exists():
            shutil.rmtree(target)  # left over from a run that died while it saved
        save_weights(_sharded_state(state) | extras, target)
        write_model_files(model_config, target, tokenizer)
        if first_rank:
            Progress(
                iteration=state.iteration,
                consumed_samples=state.iteration * config.training.global_batch_size,
                skipped=state.skipped,
                world_size=dist.get_world_size(),
                layout=_layout(config),
                distributed_optimizer=config.parallel.distributed_optimizer,
                trajectory=config.trajectory(),
            ).write(target)
            checkpoint_dir.mark_latest(root, target)
            checkpoint_dir.clear_old(root, target, config.checkpoint.keep)
    dist.barrier()


def load_checkpoint(state: TrainState, config: TrainConfig, checkpoint: Path) -> None:
    """Continue `state` from `checkpoint`.  Collective.

    Raises ConfigError when the checkpoint is damaged; `state` is then as it was.
    """
    progress = checkpoint_dir.read_progress(checkpoint, config)
    request = _sharded_state(state, is_loading=True)
    # Generator states belong to a rank: on another layout the fresh seeds stay.
    same_layout = (progress.world_size, progress.layout) == (
        dist.get_world_size(),
        _layout(config),
    )
    if same_layout:
        request["rng"] = _rng_state()
    try:
        loaded = read_weights(request, checkpoint)
    except ConfigError as error:
        raise ConfigError(
            f"{error}: write the name of an older checkpoint into {config.checkpoint.dir}/latest, "
            "or remove it to start over"
        ) from error
    load_pieces(_pieces(state), loaded)
    load_optimizer(state.optimizer, loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    if same_layout:
        _restore_rng(loaded["rng"])
    state.iteration, state.skipped = progress.iteration, progress.skipped


def _layout(config: TrainConfig) -> dict[str, Any]:
    """What decides which rank draws which random numbers."""
    return config.parallel.model_dump(
        exclude={"distributed_optimizer", "overlap", "timeout_minutes"}
    )


def _pieces(state: TrainState) -> list[GPTModel]:
    return [piece.module for piece in state.model]


def _sharded_state(state: TrainState, is_loading: bool = False) -> dict[str, Any]:
    model = sharded_pieces(_pieces(state))
    optimizer = sharded_optimizer(state.optimizer, model, is_loading=is_loading)
    return {**model, "optimizer": optimizer, "scheduler": state.scheduler.state_dict()}


def _rng_state() -> ShardedObject:
    """The generators of this rank; one of as many objects as there are ranks."""
    data = {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    if torch.cuda.is_available():
        data["cuda"] = torch.cuda.get_rng_state()
    return ShardedObject(
        "rng", data, global_shape=(dist.get_world_size(),), global_offset=(dist.get_rank(),)
    )


def _restore_rng(data: dict[str, Any]) -> None:
    torch.set_rng_state(data["torch"])
    get_cuda_rng_tracker().set_states(data["tracker"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(data["cuda"])
