"""Names and layouts of the weights: one table, read in both directions.

Megatron fuses what Hugging Face keeps apart: q, k and v of one KV group lie together (so that
tensor parallelism can cut between groups), gate and up projection are stacked, and the vocabulary
has padding rows.  Everything else is a copy under another name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bgkd_megatron.megatron.model_config import ModelConfig

Weights = dict[str, Tensor]
# Other types hold quantized weights, of which the scales would be missing, or no weights at all.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Layout(Protocol):
    """How the tensors of one table row fit together; `split` undoes `merge`."""

    def merge(self, parts: list[Tensor]) -> Tensor: ...

    def split(self, whole: Tensor) -> list[Tensor]: ...


class Copy:
    """One tensor, the same in both."""

    def merge(self, parts: list[Tensor]) -> Tensor:
        return parts[0]

    def split(self, whole: Tensor) -> list[Tensor]:
        return [whole]


class Stacked:
    """Two matrices of equal height on top of each other (SwiGLU: gate over up)."""

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)

    def split(self, whole: Tensor) -> list[Tensor]:
        return list(whole.chunk(2))


@dataclass(frozen=True)
class GroupedQKV:
    """For each KV group: its query heads, its key head, its value head.  Weight or bias."""

    groups: int
    queries_per_group: int
    head_dim: int

    def merge(self, parts: list[Tensor]) -> Tensor:
        grouped = [part.unflatten(0, (self.groups, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def split(self, whole: Tensor) -> list[Tensor]:
        heads = [self.queries_per_group * self.head_dim, self.head_dim, self.head_dim]
        grouped = whole.unflatten(0, (self.groups, -1)).split(heads, dim=1)
        return [part.flatten(0, 1) for part in grouped]


@dataclass(frozen=True)
class PaddedRows:
    """Rows of zeros behind the real vocabulary; no id points at them and the loss masks them."""

    rows: int
    padded_rows: int

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.nn.functional.pad(parts[0], (0, 0, 0, self.padded_rows - self.rows))

    def split(self, whole: Tensor) -> list[Tensor]:
        return [whole[: self.rows]]


@dataclass(frozen=True)
class Row:
    """One Megatron tensor and the Hugging Face tensors, with their shapes, that it is made of."""

    megatron: str
    hugging_face: Mapping[str, tuple[int, ...]]
    layout: Layout


def table(config: ModelConfig, padded_vocab_size: int) -> Iterator[Row]:
    """All weights of a model of this configuration; padded_vocab_size: rows on Megatron's side."""
    vocab = PaddedRows(config.vocab_size, padded_vocab_size)
    vocab_shape = (config.vocab_size, config.hidden_size)
    embedding = "embedding.word_embeddings.weight"
    yield Row(embedding, {"model.embed_tokens.weight": vocab_shape}, vocab)
    for layer in range(config.num_layers):
        for row in _layer(config):
            names = {f"model.layers.{layer}.{n}": shape for n, shape in row.hugging_face.items()}
            yield Row(f"decoder.layers.{layer}.{row.megatron}", names, row.layout)
    final_norm = {"model.norm.weight": (config.hidden_size,)}
    yield Row("decoder.final_layernorm.weight", final_norm, Copy())
    if not config.tie_embeddings:
        yield Row("output_layer.weight", {"lm_head.weight": vocab_shape}, vocab)


def _layer(config: ModelConfig) -> Iterator[Row]:
    """The weights of one decoder layer, without the layer's prefix."""
    hidden, ffn, head_dim = config.hidden_size, config.ffn_hidden_size, config.kv_channels
    queries = config.num_attention_heads * head_dim
    heights = {"q": queries, "k": config.num_query_groups * head_dim}
    heights["v"] = heights["k"]
    queries_per_group = config.num_attention_heads // config.num_query_groups
    qkv = GroupedQKV(config.num_query_groups, queries_per_group, head_dim)

    yield Row("input_layernorm.weight", {"input_layernorm.weight": (hidden,)}, Copy())
    weights = {f"self_attn.{x}_proj.weight": (height, hidden) for x, height in heights.items()}
    yield Row("self_attention.linear_qkv.weight", weights, qkv)
    if config.qkv_bias:
        biases = {f"self_attn.{x}_proj.bias": (height,) for x, height in heights.items()}
        yield Row("self_attention.linear_qkv.bias", biases, qkv)
    if config.qk_layernorm:
        for x in "qk":
            norm = {f"self_attn.{x}_norm.weight": (head_dim,)}
            yield Row(f"self_attention.{x}_layernorm.weight", norm, Copy())
    projection = {"self_attn.o_proj.weight": (hidden, queries)}
    yield Row("self_attention.linear_proj.weight", projection, Copy())
    norm = {"post_attention_layernorm.weight": (hidden,)}
    yield Row("pre_mlp_layernorm.weight", norm, Copy())
    gate_up = {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)}
    yield Row("mlp.linear_fc1.weight", gate_up, Stacked())
    yield Row("mlp.linear_fc2.weight", {"mlp.down_proj.weight": (hidden, ffn)}, Copy())


def fill_megatron(
    parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], config: ModelConfig
) -> None:
    """Copy Hugging Face `weights` into the `parameters` (by name) of a Megatron model at TP 1.

    Values are converted to the parameters' dtype.
    Raises ValueError when a weight is missing, has another shape, is not of DTYPES or not finite,
    or would be left over.
    """
    rows = list(table(config, parameters["embedding.word_embeddings.weight"].shape[0]))
    _check_complete(rows, set(weights), config)
    for row in rows:
        parameter = parameters[row.megatron]
        parts = []
        for name, shape in row.hugging_face.items():
            part = weights[name]
            if tuple(part.shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {tuple(part.shape)}")
            parts.append(converted(name, part, parameter.dtype))
        with torch.no_grad():
            parameter.copy_(row.layout.merge(parts))


def converted(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` as `dtype`.

    Raises ValueError when it is not of DTYPES, or holds what is not finite in `dtype`.
    """
    if weight.dtype not in DTYPES:
        known = ", ".join(_short(known) for known in DTYPES)
        raise ValueError(f"{name} must be of {known}, got {_short(weight.dtype)}")
    weight = weight.to(dtype)
    # Unlike isfinite().all() this makes no tensors of the weight's size; NaN goes through.
    if not all(math.isfinite(extreme) for extreme in weight.aminmax()):
        raise ValueError(f"{name} holds NaN, infinity, or values too large for {_short(dtype)}")
    return weight


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_hugging_face(parameters: Mapping[str, Tensor], config: ModelConfig) -> Weights:
    """The Hugging Face weights, by name, of a Megatron model's `parameters` at TP 1."""
    weights: Weights = {}
    for row in table(config, parameters["embedding.word_embeddings.weight"].shape[0]):
        parts = row.layout.split(parameters[row.megatron].detach())
        for name, part in zip(row.hugging_face, parts, strict=True):
            # A copy of its own: safetensors refuses tensors that are parts of a larger one.
            weights[name] = part.clone(memory_format=torch.contiguous_format)
    return weights


def _check_complete(rows: list[Row], given: set[str], config: ModelConfig) -> None:
    expected = {name for row in rows for name in row.hugging_face}
    # Old checkpoints store the rotary frequencies, and some a second copy of tied embeddings.
    harmless = {name for name in given if name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        harmless.add("lm_head.weight")
    if missing := expected - given:
        raise ValueError(f"{len(missing)} weights are missing, such as {min(missing)}")
    if surplus := given - expected - harmless:
        raise ValueError(
            f"{len(surplus)} weights have no place in the model, such as {min(surplus)}"
        )
