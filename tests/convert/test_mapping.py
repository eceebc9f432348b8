"""The table of names and layouts, without Megatron: parameters are made from the table itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgkd_megatron.convert.mapping import (
    DTYPES,
    GroupedQKV,
    PaddedRows,
    Stacked,
    fill_megatron,
    table,
    to_hugging_face,
)
from bgkd_megatron.megatron.model_config import ModelConfig

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=24,
    num_attention_heads=6,
    num_query_groups=2,
    ffn_hidden_size=40,
    vocab_size=101,
    max_position_embeddings=32,
)
VARIANTS = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_layernorm": True, "head_dim": 8},
}


def variant(name: str) -> ModelConfig:
    return ModelConfig(**{**CONFIG.model_dump(), **VARIANTS[name]})


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator)
        for row in table(config, 128)
        for name, shape in row.hugging_face.items()
    }


def blank_parameters(config: ModelConfig) -> dict[str, Tensor]:
    return {
        row.megatron: row.layout.merge(
            [torch.full(shape, torch.nan) for shape in row.hugging_face.values()]
        )
        for row in table(config, 128)
    }


def test_qkv_rows_lie_together_by_group() -> None:
    # Two groups of two query heads, one channel a head.
    queries = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    keys = torch.tensor([[10.0], [20.0]])
    values = torch.tensor([[100.0], [200.0]])
    fused = GroupedQKV(groups=2, queries_per_group=2, head_dim=1).merge([queries, keys, values])
    assert fused.flatten().tolist() == [1, 2, 10, 100, 3, 4, 20, 200]


def test_a_head_keeps_its_channels_in_order() -> None:
    queries, keys, values = torch.arange(4), torch.arange(10, 12), torch.arange(20, 22)
    fused = GroupedQKV(groups=1, queries_per_group=2, head_dim=2).merge([queries, keys, values])
    assert fused.tolist() == [0, 1, 2, 3, 10, 11, 20, 21]


def test_gate_lies_over_up_and_padding_is_zero() -> None:
    assert Stacked().merge([torch.zeros(1, 2), torch.ones(1, 2)]).tolist() == [[0, 0], [1, 1]]
    padded = PaddedRows(2, 4).merge([torch.ones(2, 1)])
    assert padded.flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_is_exact(name: str) -> None:
    config = variant(name)
    weights, parameters = random_weights(config), blank_parameters(config)
    fill_megatron(parameters, weights, config)
    returned = to_hugging_face(parameters, config)
    assert returned.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(returned[key], weight), key


def test_exported_weights_share_no_memory() -> None:
    parameters = blank_parameters(CONFIG)
    for key, weight in to_hugging_face(parameters, CONFIG).items():
        assert weight.untyped_storage().nbytes() == weight.numel() * 4, key


def test_a_missing_weight_is_named() -> None:
    weights = random_weights(CONFIG)
    del weights["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"1 weights are missing.*layers\.1\.self_attn\.k_proj"):
        fill_megatron(blank_parameters(CONFIG), weights, CONFIG)


def test_a_weight_without_a_place_is_named() -> None:
    weights = random_weights(CONFIG)
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(24)
    with pytest.raises(ValueError, match=r"no place.*q_proj\.bias"):
        fill_megatron(blank_parameters(CONFIG), weights, CONFIG)


def test_a_wrong_shape_is_named() -> None:
    weights = random_weights(CONFIG)
    weights["model.norm.weight"] = torch.zeros(23)
    with pytest.raises(ValueError, match=r"model\.norm\.weight must have the shape \(24,\)"):
        fill_megatron(blank_parameters(CONFIG), weights, CONFIG)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e39])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    weights = random_weights(CONFIG)
    up_proj = weights["model.layers.1.mlp.up_proj.weight"].double()  # 1e39 is finite, until then
    up_proj[3, 5] = value
    weights["model.layers.1.mlp.up_proj.weight"] = up_proj
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight holds .* for float32"):
        fill_megatron(blank_parameters(CONFIG), weights, CONFIG)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_a_weight_of_another_type_is_named(dtype: torch.dtype) -> None:
    weights = random_weights(CONFIG)
    weights["model.norm.weight"] = torch.ones(24).to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"model\.norm\.weight must be of float32.*, got {name}"):
        fill_megatron(blank_parameters(CONFIG), weights, CONFIG)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_weights(dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in random_weights(CONFIG).items()}
    parameters = blank_parameters(CONFIG)
    fill_megatron(parameters, weights, CONFIG)
    returned = to_hugging_face(parameters, CONFIG)
    assert all(torch.equal(returned[name], weights[name].float()) for name in weights)


def test_redundant_weights_of_old_checkpoints_are_ignored() -> None:
    config = variant("tied")
    weights = random_weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    fill_megatron(blank_parameters(config), weights, config)
