"""The tiny world of the checks: models, datasets, configurations, layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from megatron.core import parallel_state
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.models.gpt import GPTModel

from bgkd_megatron.megatron import parallel
from bgkd_megatron.megatron.config import ParallelConfig, TrainConfig
from bgkd_megatron.megatron.dataset import LOSS_MASK_SUFFIX
from bgkd_megatron.megatron.model import build_model
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.weights import load_weights, save_model_dir

SEQ_LENGTH = 16
# 768 = 128 * 6 needs no padding on 1, 2 and 3 ranks; 301 is padded to 384, 512 and 384.
VOCAB_EVEN, VOCAB_PADDED = 768, 301

_SHAPE: dict[str, Any] = {
    "num_attention_heads": 6,
    "num_query_groups": 6,
    "max_position_embeddings": 32,
    "qk_layernorm": True,  # its gradient is summed over ranks by a path of its own
}


def student_config(vocab_size: int, **settings: Any) -> ModelConfig:
    shape = {"num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 96}
    return ModelConfig(**{"vocab_size": vocab_size, **shape, **_SHAPE, **settings})


def teacher_config(vocab_size: int, **settings: Any) -> ModelConfig:
    """Another depth and width, and tied embeddings."""
    shape = {"num_layers": 5, "hidden_size": 96, "ffn_hidden_size": 192, "tie_embeddings": True}
    return ModelConfig(**{"vocab_size": vocab_size, **shape, **_SHAPE, **settings})


def variants() -> dict[str, ModelConfig]:
    """Models with what the others have not; by role, of the padded vocabulary."""
    experts = {"num_experts": 4, "ffn_hidden_size": 32, "aux_loss": 0.1}
    return {
        f"{role}_{name}": make(VOCAB_PADDED, **settings)
        for role, make in (("student", student_config), ("teacher", teacher_config))
        for name, settings in {
            "experts": {"experts": experts},
            "heads": {"mtp_layers": 1},
            "capped": {"logit_scale": 2.0, "final_logit_softcap": 4.0},
            "tied": {"tie_embeddings": role == "student"},
        }.items()
    }


def create(workspace: Path) -> None:
    """Write models (each vocabulary) and datasets.  On one process."""
    models = {
        f"{role}_{vocab_size}": make(vocab_size)
        for role, make in (("student", student_config), ("teacher", teacher_config))
        for vocab_size in (VOCAB_EVEN, VOCAB_PADDED)
    }
    with layout():
        for number, (name, config) in enumerate({**models, **variants()}.items()):
            model = build_model(config, seed=number)
            spread(model[0])
            save_model_dir(model, config, workspace / name)
    rng = np.random.default_rng(0)
    write_dataset(workspace / "plain", [rng.integers(0, VOCAB_PADDED, n) for n in (40, 9, 70, 25)])
    # Documents shorter and longer than a sample; what is masked differs from sample to sample.
    documents = [rng.integers(0, VOCAB_PADDED, n) for n in rng.integers(3, 60, 20)]
    masks = [(rng.random(len(d)) < rng.random()).astype(np.uint8) for d in documents]
    write_dataset(workspace / "masked", documents, masks)


@torch.no_grad()
def spread(model: GPTModel) -> None:
    """Larger weights: fresh ones give nearly uniform distributions, on which all losses agree."""
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.mul_(5.0)


def write_dataset(
    prefix: Path, documents: list[np.ndarray], masks: list[np.ndarray] | None = None
) -> None:
    parts = [("", documents, np.uint16)]
    if masks is not None:
        parts.append((LOSS_MASK_SUFFIX, masks, np.uint8))
    for suffix, sequences, dtype in parts:
        builder = IndexedDatasetBuilder(f"{prefix}{suffix}.bin", dtype=dtype)
        for sequence in sequences:
            builder.add_document(sequence.tolist(), [len(sequence)])
        builder.finalize(f"{prefix}{suffix}.idx")


@contextmanager
def layout(tensor_parallel: int = 1, seed: int = 0, **sizes: Any) -> Iterator[None]:
    """Megatron's groups of these sizes over all processes."""
    sizes = {"tensor_parallel": tensor_parallel, **sizes}
    parallel.init_model_parallel(ParallelConfig(**sizes), seed=seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        # Megatron forgets its groups, but gloo keeps the threads of each: hundreds for a layout.
        for group in list(c10d._world.pg_map):
            if group is not dist.group.WORLD:
                dist.destroy_process_group(group)


def load(workspace: Path, role: str, vocab_size: int, **options: Any) -> GPTModel:
    """The only piece of a model."""
    model_dir = workspace / f"{role}_{vocab_size}"
    model = build_model(ModelConfig.read(model_dir), **options)
    load_weights(model, model_dir)
    return model[0]


def run_config(workspace: Path, name: str, **sections: dict[str, Any]) -> TrainConfig:
    """A run of four steps in WORKSPACE/NAME; `sections` replace single settings."""
    settings: dict[str, dict[str, Any]] = {
        "student": {"model_dir": workspace / f"student_{VOCAB_PADDED}"},
        "teacher": {"model_dir": workspace / f"teacher_{VOCAB_PADDED}"},
        "data": {
            "train": [str(workspace / "plain"), str(workspace / "masked")],
            "valid": {"held out": str(workspace / "masked")},
            "seq_length": SEQ_LENGTH,
        },
        "parallel": {},
        # With eps this large an update is nearly proportional to the gradient; Adam's usual one
        # turns the rounding errors of tiny gradients into full steps.
        "optimizer": {"lr": 0.3, "warmup_steps": 2, "eps": 1.0},
        "training": {"global_batch_size": 4, "steps": 4, "precision": "fp32"},
        "checkpoint": {"dir": workspace / name / "checkpoints", "interval": 2},
        "logging": {"dir": workspace / name, "tensorboard": False},
        "objective": {},
        "evaluation": {},
    }
    for section, values in sections.items():
        settings[section] |= values
    return TrainConfig.model_validate(settings)
