"""A run on paper: model directories without weights, a data set without data, its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.config_file import load_config
from bgkd_megatron.megatron.model_config import ModelConfig

STUDENT = ModelConfig(
    num_layers=2,
    hidden_size=48,
    num_attention_heads=6,
    num_query_groups=3,
    ffn_hidden_size=96,
    vocab_size=300,
    max_position_embeddings=64,
)


def write_model(model_dir: Path, config: ModelConfig, tokens: dict[str, int]) -> None:
    """A model directory as far as the checks look at it."""
    (model_dir / "weights").mkdir(parents=True)
    (model_dir / "weights" / "metadata.json").write_text("{}")
    (model_dir / "tokenizer").mkdir()
    tokenizer = {"model": {"vocab": tokens}, "added_tokens": [{"content": "<end>", "id": 2}]}
    (model_dir / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config.write(model_dir)


def write_run(tmp_path: Path) -> dict[str, Any]:
    """The settings of a run without a mistake, for 6 processes; what it reads lies in tmp_path."""
    write_model(tmp_path / "student", STUDENT, {"a": 0, "b": 1})
    write_model(tmp_path / "teacher", STUDENT, {"a": 0, "b": 1})
    for suffix in (".bin", ".idx"):
        (tmp_path / f"data{suffix}").write_bytes(b"0")
    return {
        "student": {"model_dir": str(tmp_path / "student")},
        "teacher": {"model_dir": str(tmp_path / "teacher")},
        "data": {"train": [str(tmp_path / "data")], "seq_length": 32},
        "parallel": {"tensor_parallel": 3},
        "optimizer": {"lr": 1e-3},
        "training": {"global_batch_size": 4, "steps": 10},
        "checkpoint": {"dir": str(tmp_path / "checkpoints")},
        "logging": {"dir": str(tmp_path / "log")},
    }


def load(tmp_path: Path, settings: dict[str, Any], *overrides: str) -> TrainConfig:
    """The configuration of `settings`, by way of a file."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return load_config(tmp_path / "run.yaml", overrides)
