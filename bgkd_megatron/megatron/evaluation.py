"""Held-out likelihood and distance to the teacher, with the operator and loop of training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.megatron import build
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.console import valid_line
from bgkd_megatron.megatron.dataset import SampleDataset, global_batch
from bgkd_megatron.megatron.errors import RunError, writing
from bgkd_megatron.megatron.loss import DistillationLoss, mean_metrics
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.stop_signal import StopSignal
from bgkd_megatron.objectives.hybrid import HybridObjective
from bgkd_megatron.objectives.metrics import TEACHER_METRICS
from bgkd_megatron.schedule import run_schedule
from bgkd_megatron.statistics import Feature
from bgkd_megatron.teacher.states import Teacher

__all__ = ["evaluate", "evaluate_run", "evaluation_loss"]


def evaluation_loss(
    config: TrainConfig, model_config: ModelConfig, teacher: Teacher | None
) -> DistillationLoss:
    """The objective of `config`, with all metrics of the teacher even where the loss needs none, on
    the data's labels where training draws its own: the likelihood is that of the data."""
    extra = Feature(0) if teacher is None else TEACHER_METRICS
    settings = config.objective
    if settings.draws_labels:
        settings = settings.model_copy(update={"hard_label": "data"})
    objective = HybridObjective(settings, model_config.vocab_size, extra_features=extra)
    return DistillationLoss(objective, teacher, final_logits=model_config.final_logits)


@torch.no_grad()
def evaluate(
    model: Sequence[Any],
    loss: DistillationLoss,
    datasets: Mapping[str, SampleDataset],
    config: TrainConfig,
    progress: float = 1.0,
    stop: StopSignal | None = None,
) -> dict[str, dict[str, float]] | None:
    """Mean metrics of each held-out set, over its tokens; None when `stop` ended it half-way.

    progress: part of the run that is done; the loss of a curriculum depends on it.
    Collective; leaves `model` training.  Raises RunError for a set without a target.
    """
    results = {}
    for piece in model:
        piece.eval()
    try:
        for name, dataset in datasets.items():
            reports: list[dict[str, Tensor]] = []
            for samples in _global_batches(len(dataset), config):
                if stop is not None and stop.agree():
                    return None
                batches = global_batch(dataset, samples, config.training.micro_batch_size)
                for group in loss.groups(batches):
                    step = loss.forward_step(group, progress)
                    reports += run_schedule(step, model, group, forward_only=True)
            results[name] = mean_metrics(reports)
            if not results[name]["tokens"]:
                raise RunError(
                    f"the held-out set {name!r} has no target in {_extent(config)}: check its loss "
                    "mask, or leave it out of data.valid"
                )
    finally:
        for piece in model:
            piece.train()
    return results


def _global_batches(num_samples: int, config: TrainConfig) -> Iterator[range]:
    """As large as those of training: the most that runs between two looks at the stop signal."""
    size = config.training.global_batch_size
    for batch, start in enumerate(range(0, num_samples, size)):
        if batch == config.evaluation.batches:
            return
        yield range(start, min(start + size, num_samples))


def _extent(config: TrainConfig) -> str:
    batches = config.evaluation.batches
    return "all of it" if batches is None else f"its first {batches} global batches"


def evaluate_run(config: TrainConfig, output: Path | None) -> None:
    """Evaluate the student of `config` on all held-out sets; print, and write JSON to `output`.

    Raises RunError for a set without a target, RankError when `output` cannot be written.
    """
    model_config = config.student.model()
    teacher = build.build_teacher(config)
    results = evaluate(
        build.build_student(config, model_config),
        evaluation_loss(config, model_config, teacher),
        build.valid_sets(config, build.dataset_factory(config, model_config.vocab_size)),
        config,
    )
    if results is not None and dist.get_rank() == 0:
        for name, metrics in results.items():
            print(valid_line(name, metrics), flush=True)
        if output is not None:
            with writing(output):
                output.write_text(json.dumps(results, indent=2) + "\n")
