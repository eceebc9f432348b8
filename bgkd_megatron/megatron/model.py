"""Megatron-Core models from a `ModelConfig`; `weights` fills and saves them."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch.nn.functional import silu

from bgkd_megatron.megatron import parallel
from bgkd_megatron.megatron.layer_spec import block_spec
from bgkd_megatron.megatron.model_config import ModelConfig

__all__ = ["build_model"]


def transformer_config(
    config: ModelConfig, *, dtype: torch.dtype, sequence_parallel: bool, initialize: bool
) -> TransformerConfig:
    """Megatron's configuration of `config` on the current process groups."""
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        ffn_hidden_size=config.ffn_hidden_size,
        kv_channels=config.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_epsilon,
        qk_layernorm=config.qk_layernorm,
        gated_linear_unit=True,
        activation_func=silu,
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        sequence_parallel=sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Fresh weights are drawn on the CPU for the whole model and then cut: the same model for
        # every tensor-parallel size that pads the vocabulary to the same length.
        use_cpu_initialization=True,
        perform_initialization=initialize,
        # Losses and gradients are sums over tokens, divided once by the number of tokens of the
        # global batch: the result depends on neither ranks nor microbatches.
        calculate_per_token_loss=True,
    )


def build_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    sequence_parallel: bool = False,
    seed: int | None = None,
) -> GPTModel:
    """A GPTModel on this rank's device, cut for the current process groups.

    dtype: of the parameters, float32 or bfloat16.  seed: of fresh weights; without it they are left
    unset, to be loaded.  The output stays vocab-parallel: [s, b, padded_vocab_size / tp].
    """
    megatron_config = transformer_config(
        config,
        dtype=dtype,
        sequence_parallel=sequence_parallel,
        initialize=seed is not None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        model = GPTModel(
            megatron_config,
            block_spec(megatron_config),
            vocab_size=config.padded_vocab_size(megatron_config.tensor_model_parallel_size),
            max_sequence_length=config.max_position_embeddings,
            share_embeddings_and_output_weights=config.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=config.rope_base,
        )
    _zero_padding(model, config.vocab_size)
    return model.to(parallel.device())


@torch.no_grad()
def _zero_padding(model: GPTModel, vocab_size: int) -> None:
    """Rows beyond the vocabulary start as 0, and stay 0 when a checkpoint made for another layout
    does not have them.  Unset memory must not stay there: the gradient of such a logit is 0, but
    0 * NaN would still reach the hidden states."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for name, weight in model.named_parameters():
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            first = max(0, vocab_size - rank * weight.shape[0])
            weight[first:].zero_()
