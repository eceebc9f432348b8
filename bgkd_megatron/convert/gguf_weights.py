"""GGUF files of the llama architecture, read as Hugging Face configuration and weights.

Source of the format: the GGUF specification in ggml and convert_hf_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor

from bgkd_megatron.megatron.model_config import ModelConfig

# GGUF's names without ".weight": of the model, and of layer N without "blk.N.".
MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def field(reader: GGUFReader, name: str, default: Any = None) -> Any:
    """The value of a metadata field, or `default`; ValueError if it is missing without one."""
    entry = reader.get_field(name)
    if entry is not None:
        return entry.contents()
    if default is None:
        raise ValueError(f"the GGUF file has no field {name}")
    return default


def read_config(reader: GGUFReader) -> ModelConfig:
    """The architecture of a GGUF model.  Raises ValueError when it is not a plain Llama."""
    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"the GGUF architecture must be llama, got {architecture!r}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError("the GGUF file has no tensor token_embd.weight")
    if "rope_freqs.weight" in tensors:
        raise ValueError("GGUF models with scaled rotary frequencies are not supported")
    heads = field(reader, "llama.attention.head_count")
    return ModelConfig(
        num_layers=field(reader, "llama.block_count"),
        hidden_size=field(reader, "llama.embedding_length"),
        num_attention_heads=heads,
        num_query_groups=field(reader, "llama.attention.head_count_kv", heads),
        ffn_hidden_size=field(reader, "llama.feed_forward_length"),
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        max_position_embeddings=field(reader, "llama.context_length"),
        rope_base=field(reader, "llama.rope.freq_base", 10000.0),
        norm_epsilon=_shortest(field(reader, "llama.attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in tensors,
        head_dim=field(reader, "llama.rope.dimension_count", 0) or None,
    )


def _shortest(value: float) -> float:
    """GGUF keeps floats in 32 bits: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value)))


class GGUFWeights(Mapping[str, Tensor]):
    """The tensors of a GGUF file under Hugging Face names, float32, dequantized when asked for."""

    def __init__(self, reader: GGUFReader, config: ModelConfig) -> None:
        self._tensors = {_hugging_face_name(tensor.name): tensor for tensor in reader.tensors}
        self._heads = {
            "self_attn.q_proj.weight": config.num_attention_heads,
            "self_attn.k_proj.weight": config.num_query_groups,
        }

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for suffix, heads in self._heads.items():
            if name.endswith(suffix):
                weight = _rotate_half_order(weight, heads)
        return torch.from_numpy(np.ascontiguousarray(weight))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _hugging_face_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"
    elif stem in MODEL_NAMES:
        return f"{MODEL_NAMES[stem]}.{suffix}"
    raise ValueError(f"the GGUF tensor {name} has no place in a Llama model")


def _rotate_half_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of q and k.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ...; Hugging Face and Megatron rotate row i
    with row i + d/2.  A model with the wrong order runs, but badly.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
