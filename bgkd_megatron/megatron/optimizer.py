"""Megatron's optimizer and schedule from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from bgkd_megatron.megatron.config import OptimizerConfig, ParallelConfig

__all__ = ["build_optimizer", "build_scheduler", "load_optimizer", "sharded_optimizer"]

# States of the distributed optimizer by parameter, not by rank: any other layout can load them.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}


def build_optimizer(
    config: OptimizerConfig, parallel: ParallelConfig, model: Sequence[Any], dtype: torch.dtype
) -> MegatronOptimizer:
    """AdamW on the pieces of `model` (Megatron's DistributedDataParallel), with fp32 master weights
    for bf16.

    Weight decay leaves out norms and biases (Megatron's default).
    """
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            clip_grad=config.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_param_gather=parallel.gathers_in_forward,
        ),
        list(model),
    )


def build_scheduler(
    config: OptimizerConfig, optimizer: MegatronOptimizer, steps: int
) -> OptimizerParamScheduler:
    """The learning rate of each step.  Call step(1) before each update: the first step then has
    the first rung of the warm-up (not 0) and the last one min_lr."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.warmup_steps,
        lr_decay_steps=steps,
        lr_decay_style=config.decay,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )


def sharded_optimizer(
    optimizer: MegatronOptimizer, model_state: ShardedStateDict, *, is_loading: bool
) -> ShardedStateDict:
    """What this rank holds of the optimizer of the model with `model_state`; is_loading: or what it
    asks for."""
    if is_loading:
        for part in _parts(optimizer):
            if isinstance(part, DistributedOptimizer) and not part.optimizer.state:
                # Megatron asks for the shapes of states that the first update would make.
                part._init_optimizer_states_with_dummy_values()
    state: ShardedStateDict = optimizer.sharded_state_dict(
        model_state, is_loading=is_loading, metadata=_METADATA
    )
    return state


@torch.no_grad()
def load_optimizer(optimizer: MegatronOptimizer, state: ShardedStateDict) -> None:
    """Give `optimizer` what was loaded for its `sharded_optimizer`."""
    parts = _parts(optimizer)
    if len(parts) == 1:
        _load(parts[0], state)
        return
    for number, part in enumerate(parts):
        _load(part, state[number])


def _load(part: MegatronOptimizer, state: ShardedStateDict) -> None:
    if not isinstance(part, DistributedOptimizer):
        part.load_state_dict(state)
        return
    of_parameters = ("param_state", "param_state_sharding_type")
    part.load_state_dict(
        {name: value for name, value in state.items() if name not in of_parameters}
    )
    # torch's Adam, which stands in where there are neither TE's nor Apex's, counts the updates of
    # each parameter.  Megatron does not expect that where it copies the states, and gives all
    # parameters one and the same counter, which would then count each update many times.
    states = list(part.optimizer.state.values())
    steps = [of_parameter.pop("step", None) for of_parameter in states]
    part.load_parameter_state_from_fully_reshardable(state["param_state"])
    for of_parameter, step in zip(states, steps, strict=True):
        if step is not None:
            of_parameter["step"] = step.clone()


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Of a chain (dense parameters, experts), its links."""
    parts: list[MegatronOptimizer] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts
