"""Hugging Face model directories: config.json and safetensors, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.settings import explain

INDEX_FILE = "model.safetensors.index.json"
# Where one of these is missing, transformers silently takes that of a model of 7B parameters.
REQUIRED_SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings")


def read_config(directory: Path) -> ModelConfig:
    """The architecture in `directory`/config.json.

    Raises FileNotFoundError, and ValueError for a damaged file or a model that differs from
    `ModelConfig` in anything that would change its logits: a converted model that is only almost
    right is worse than none.
    """
    file = directory / "config.json"
    content = _read_object(file)
    try:
        _check_sizes(content)
        config = _parse_config(directory)
        _refuse_unsupported(config)
        return _model_config(config)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {explain(error)}") from error


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {content!r:.40}")
    return content


def _check_sizes(content: Mapping[str, Any]) -> None:
    """transformers divides by some of them before it looks at any."""
    optional = [name for name in OPTIONAL_SIZES if content.get(name) is not None]
    for name in (*REQUIRED_SIZES, *optional):
        if name not in content:
            raise ValueError(f"{name} is missing")
        size = content[name]
        if type(size) is not int or size < 1:  # a bool is an int
            raise ValueError(f"{name} must be a positive integer, got {size!r:.40}")


def _parse_config(directory: Path) -> Any:
    """The configuration with the defaults of its model type, as transformers understands it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig  # takes seconds to import

    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (StrictDataclassError, AttributeError, LookupError, TypeError) as error:
        # The first is for the values that transformers checks, the others come from using them.
        raise ValueError(f"transformers cannot read it ({error})") from error


def _model_config(config: Any) -> ModelConfig:
    return ModelConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        ffn_hidden_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rope_base=config.rope_parameters.get("rope_theta"),
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


@contextmanager
def _open_weights(file: Path) -> Iterator[Any]:
    """A safetensors file; what is wrong with it becomes a ValueError with its name."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of a Hugging Face directory by name, each read from disk when asked for."""

    def __init__(self, directory: Path) -> None:
        index = directory / INDEX_FILE
        if index.is_file():
            weight_map = _read_object(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) for file in weight_map.values()
            ):
                raise ValueError(f"{index} is no index of safetensors: weight_map must name files")
            self._file = {name: directory / file for name, file in weight_map.items()}
            return
        file = directory / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{directory} holds neither model.safetensors nor {INDEX_FILE}")
        with _open_weights(file) as tensors:
            self._file = dict.fromkeys(tensors.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        with _open_weights(self._file[name]) as tensors:
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)
