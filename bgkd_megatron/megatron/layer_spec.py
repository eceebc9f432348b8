"""Which modules a transformer layer is built from: the one place that chooses an implementation."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)

from bgkd_megatron.megatron.context_attention import GatheredAttention

__all__ = ["RMSNorm", "block_spec", "mtp_spec"]


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, also under sequence parallelism.

    Megatron's wrapper of the same class refuses sequence parallelism.  All it takes is the mark on
    the weight by which Megatron sums its gradient over the tensor-parallel ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, **options: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def block_spec(
    config: TransformerConfig, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Modules of this stage of the decoder: Megatron's own layers ("local", without Transformer
    Engine)."""
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        qk_layernorm=config.qk_layernorm,
        normalization="RMSNorm",
    )
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if config.context_parallel_size > 1:
        attention.core_attention = GatheredAttention
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)


def mtp_spec(
    config: TransformerConfig, block: TransformerBlockSubmodules, vp_stage: int | None = None
) -> Any:
    """Modules of the heads that predict further ahead; None on stages without them."""
    spec = get_gpt_mtp_block_spec(config, block, use_transformer_engine=False, vp_stage=vp_stage)
    for head in [] if spec is None else spec.layer_specs:
        modules = head.submodules
        modules.enorm = modules.hnorm = modules.layer_norm = RMSNorm
    return spec
