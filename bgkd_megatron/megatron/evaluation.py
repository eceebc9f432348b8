"""Held-out likelihood and distance to the teacher, with the operator and loop of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from bgkd_megatron.megatron import build
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.console import valid_line
from bgkd_megatron.megatron.dataset import SampleDataset, microbatches
from bgkd_megatron.megatron.loss import DistillationLoss, mean_metrics
from bgkd_megatron.objectives.hybrid import HybridObjective
from bgkd_megatron.statistics import Feature
from bgkd_megatron.teacher.states import Teacher

__all__ = ["evaluate", "evaluate_run", "evaluation_loss"]

_COMPARISON = Feature.TEACHER | Feature.FORWARD_KL | Feature.REVERSE_KL | Feature.TEACHER_ENTROPY


def evaluation_loss(
    config: TrainConfig, vocab_size: int, teacher: Teacher | None
) -> DistillationLoss:
    """The objective of `config`, with all metrics of the teacher even where the loss needs none."""
    objective = HybridObjective(config.objective, vocab_size)
    if teacher is not None:
        objective.features |= _COMPARISON
    return DistillationLoss(objective, vocab_size, teacher)


@torch.no_grad()
def evaluate(
    model: Any,
    loss: DistillationLoss,
    datasets: Mapping[str, SampleDataset],
    config: TrainConfig,
    progress: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Mean metrics of each held-out set, over its tokens.  Collective; leaves `model` training.

    progress: part of the run that is done; the loss of a curriculum depends on it.
    """
    model.eval()
    results = {}
    for name, dataset in datasets.items():
        num_samples = len(dataset)
        if config.evaluation.batches is not None:
            limit = config.evaluation.batches * config.training.global_batch_size
            num_samples = min(num_samples, limit)
        micro_batch_size = config.training.micro_batch_size
        stride = micro_batch_size * parallel_state.get_data_parallel_world_size()
        reports = get_forward_backward_func()(
            forward_step_func=loss.forward_step(progress),
            data_iterator=microbatches(dataset, range(num_samples), micro_batch_size),
            model=model,
            num_microbatches=-(-num_samples // stride),
            seq_length=config.data.seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=True,
        )
        results[name] = mean_metrics(reports)
    model.train()
    return results


def evaluate_run(config: TrainConfig, output: Path | None) -> None:
    """Evaluate the student of `config` on all held-out sets; print, and write JSON to `output`."""
    model_config = config.student.model()
    teacher = build.build_teacher(config)
    results = evaluate(
        build.build_student(config, model_config),
        evaluation_loss(config, model_config.vocab_size, teacher),
        build.valid_sets(config, build.dataset_factory(config, model_config.vocab_size)),
        config,
    )
    if dist.get_rank() == 0:
        for name, metrics in results.items():
            print(valid_line(name, metrics), flush=True)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, indent=2) + "\n")
