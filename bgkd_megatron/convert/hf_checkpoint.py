"""Hugging Face model directories: config.json and safetensors, read and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bgkd_megatron.megatron.model_config import ModelConfig

INDEX_FILE = "model.safetensors.index.json"
# Everything beside the weights that a user of the model needs; copied as it is.
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*",
    "merges.txt", "generation_config.json",
)  # fmt: skip


def read_config(directory: Path) -> ModelConfig:
    """The architecture in `directory`/config.json.

    Raises ValueError for a model that differs from `ModelConfig` in anything that would change its
    logits: a converted model that is only almost right is worse than none.
    """
    from transformers import AutoConfig  # takes seconds to import

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    _refuse_unsupported(config)
    return ModelConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        ffn_hidden_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rope_base=config.rope_parameters["rope_theta"],
        norm_epsilon=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        qk_layernorm=config.model_type == "qwen3",
        qkv_bias=config.model_type == "qwen2",
        head_dim=getattr(config, "head_dim", None),
    )


def _refuse_unsupported(config: Any) -> None:
    if config.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
        raise ValueError(
            f"model_type must be llama, mistral, qwen2 or qwen3, got {config.model_type!r}"
        )
    rope = config.rope_parameters
    for name, value, supported in (
        ("hidden_act", config.hidden_act, ("silu",)),
        ("attention_bias", getattr(config, "attention_bias", False), (False,)),
        ("mlp_bias", getattr(config, "mlp_bias", False), (False,)),
        ("rope_type", rope.get("rope_type", "default"), ("default",)),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
        ("sliding_window", getattr(config, "sliding_window", None), (None,)),
        ("quantization_config", getattr(config, "quantization_config", None), (None,)),
    ):
        if value not in supported:
            raise ValueError(f"{name} = {value!r} is not supported, only {supported[0]!r}")


def hugging_face_config(config: ModelConfig, token_ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The content of config.json.  token_ids: bos_token_id, eos_token_id, pad_token_id.

    Raises ValueError for a combination that no Hugging Face architecture has.
    """
    if config.qk_layernorm and config.qkv_bias:
        raise ValueError("no Hugging Face architecture has both qk_layernorm and qkv_bias")
    kind = "qwen3" if config.qk_layernorm else "qwen2" if config.qkv_bias else "llama"
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        # Not "rope_parameters" of transformers 5: older readers would silently take 10000 instead.
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tie_embeddings,
        **token_ids,
    }


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of a Hugging Face directory by name, each read from disk when asked for."""

    def __init__(self, directory: Path) -> None:
        index = directory / INDEX_FILE
        if index.is_file():
            weight_map = json.loads(index.read_text()).get("weight_map")
            if weight_map is None:
                raise ValueError(f"{index} has no weight_map: it is not an index of safetensors")
            self._file = {name: directory / file for name, file in weight_map.items()}
            return
        file = directory / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{directory} holds neither model.safetensors nor {INDEX_FILE}")
        with safe_open(file, framework="pt") as tensors:
            self._file = dict.fromkeys(tensors.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer, chat template and generation settings.  Raises FileNotFoundError."""
    if not (source / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{source} holds no tokenizer (no tokenizer_config.json)")
    target.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copy(file, target)
