"""Random models of every supported architecture, as Hugging Face directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 301,  # no multiple of anything: Megatron pads it
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.2,  # large enough for logits that tell models apart
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}


def write_hugging_face(directory: Path, name: str, **save_options: Any) -> None:
    """A random model with everything random that is trivial after initialization."""
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    config = AutoConfig.for_model(**{**SIZES, **MODELS[name]}, rope_parameters=rope)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        if "norm" in key or "bias" in key:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(directory, **save_options)
    byte_tokenizer().save_pretrained(directory)
    GenerationConfig(temperature=0.25, do_sample=True).save_pretrained(directory)


def weights_in(directory: Path) -> dict[str, Tensor]:
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}
