"""The parts of a run, from its configuration: student, teacher, data sets."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.dataset import DatasetFactory, SampleDataset
from bgkd_megatron.megatron.model import build_model
from bgkd_megatron.megatron.model_config import TOKENIZER_DIR, ModelConfig
from bgkd_megatron.megatron.weights import load_weights
from bgkd_megatron.teacher.frozen import FrozenTeacher

__all__ = ["build_student", "build_teacher", "dataset_factory", "dtype", "tokenizer", "valid_sets"]


def dtype(config: TrainConfig) -> torch.dtype:
    """Of weights and activations."""
    return torch.bfloat16 if config.training.precision == "bf16" else torch.float32


def build_student(config: TrainConfig, model_config: ModelConfig) -> list[GPTModel]:
    """The student's pieces on this rank at the start of the run: loaded, or with fresh weights."""
    model_dir = config.student.model_dir
    model = build_model(
        model_config,
        dtype=dtype(config),
        sequence_parallel=config.parallel.sequence_parallel,
        layers_per_stage=config.student.layers_per_stage,
        seed=config.training.seed if model_dir is None else None,
    )
    if model_dir is not None:
        load_weights(model, model_dir)
    return model


def build_teacher(config: TrainConfig) -> FrozenTeacher | None:
    """The teacher on the student's ranks, in the same precision; None when there is none."""
    if config.teacher is None:
        return None
    model_dir = config.teacher.model_dir
    model_config = ModelConfig.read(model_dir).without_heads()
    model = build_model(
        model_config,
        dtype=dtype(config),
        sequence_parallel=config.parallel.sequence_parallel,
        layers_per_stage=config.teacher.layers_per_stage,
    )
    load_weights(model, model_dir)
    return FrozenTeacher(
        model,
        final_logits=model_config.final_logits,
        microbatches_ahead=config.teacher.microbatches_ahead,
        offload=config.teacher.offload,
    )


def tokenizer(config: TrainConfig) -> Path | None:
    """The folder of the tokenizer that student and teacher share, where one of them has it."""
    dirs = [config.student.model_dir, config.teacher.model_dir if config.teacher else None]
    folders = [d / TOKENIZER_DIR for d in dirs if d is not None]
    return next((folder for folder in folders if folder.is_dir()), None)


def dataset_factory(config: TrainConfig, vocab_size: int) -> DatasetFactory:
    """Datasets of this run's sequence length and seed."""
    return DatasetFactory(
        seq_length=config.data.seq_length,
        seed=config.training.seed,
        vocab_size=vocab_size,
        end_of_document=config.data.end_of_document if config.objective.couples_positions else None,
        index_dir=config.logging.dir / "sample_index",
    )


def valid_sets(config: TrainConfig, factory: DatasetFactory) -> dict[str, SampleDataset]:
    """The held-out sets by name."""
    return {name: factory.valid(prefix) for name, prefix in config.data.valid.items()}
