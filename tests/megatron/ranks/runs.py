"""Starting runs and looking at what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from world import layout

from bgkd_megatron.megatron import checkpoint_dir, train_loop
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.model import build_model
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.run_log import METRICS_FILE
from bgkd_megatron.megatron.weights import load_weights


def train(config: TrainConfig) -> None:
    with layout(seed=config.training.seed, **config.parallel.model_dump()):
        train_loop.train(config)


def records(config: TrainConfig) -> list[dict[str, Any]]:
    dist.barrier()  # rank 0 has written them
    lines = (config.logging.dir / METRICS_FILE).read_text().splitlines()
    timing = ("seconds", "tokens_per_second", "memory")
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(timing)} for x in lines]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The student in `checkpoint`, on the current layout, which has no pipeline."""
    model = build_model(ModelConfig.read(checkpoint))
    load_weights(model, checkpoint)
    return {name: p.detach() for name, p in model[0].named_parameters()}


def last_checkpoint(config: TrainConfig) -> Path:
    checkpoint = checkpoint_dir.latest(config.checkpoint.dir)
    assert checkpoint is not None
    return checkpoint
