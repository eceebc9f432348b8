"""Megatron-Core models from a `ModelConfig`; `weights` fills and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch.nn.functional import silu

from bgkd_megatron.megatron import parallel
from bgkd_megatron.megatron.cross_entropy import cross_entropy
from bgkd_megatron.megatron.layer_spec import block_spec, mtp_spec
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.stages import stage_layers

__all__ = ["build_model"]


def transformer_config(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    sequence_parallel: bool,
    layers_per_stage: Sequence[int] | None,
    initialize: bool,
) -> TransformerConfig:
    """Megatron's configuration of `config` on the current process groups."""
    pipeline_parallel = parallel_state.get_pipeline_model_parallel_world_size()
    virtual_pipeline = parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1
    stages = None
    if pipeline_parallel > 1:
        stages = stage_layers(
            config.num_layers,
            pipeline_parallel * virtual_pipeline,
            layers_per_stage,
            config.mtp_layers,
        )
    experts: dict[str, Any] = {}
    if config.experts is not None:
        experts = {
            "num_moe_experts": config.experts.num_experts,
            "moe_router_topk": config.experts.experts_per_token,
            "moe_ffn_hidden_size": config.experts.ffn_hidden_size,
            "moe_aux_loss_coeff": config.experts.aux_loss,
            # gloo has no all-to-all of unequal parts that Megatron could use.
            "moe_token_dispatcher_type": "alltoall" if torch.cuda.is_available() else "allgather",
        }
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
        pipeline_model_parallel_size=pipeline_parallel,
        virtual_pipeline_model_parallel_size=virtual_pipeline if virtual_pipeline > 1 else None,
        pipeline_model_parallel_layout=stages,
        # In one batch, what two ranks send each other as neighbours on both sides is mixed up.
        overlap_p2p_comm=virtual_pipeline > 1,
        batch_p2p_comm=virtual_pipeline == 1,
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
        expert_model_parallel_size=parallel_state.get_expert_model_parallel_world_size(),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        **experts,
        mtp_num_layers=config.mtp_layers or None,
        # Fresh weights are drawn on the CPU for all of a stage and then cut: the same model for
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
    layers_per_stage: Sequence[int] | None = None,
    seed: int | None = None,
) -> list[GPTModel]:
    """This rank's pieces of a model, on its device, cut for the current process groups: one, or
    with an interleaved pipeline several.

    dtype: of the parameters, float32 or bfloat16.  seed: of fresh weights; without it they are left
    unset, to be loaded.  The output stays vocab-parallel: [s, b, padded_vocab_size / tp].
    """
    megatron_config = transformer_config(
        config,
        dtype=dtype,
        sequence_parallel=sequence_parallel,
        layers_per_stage=layers_per_stage,
        initialize=seed is not None,
    )
    virtual_pipeline = megatron_config.virtual_pipeline_model_parallel_size
    pipeline_rank = parallel_state.get_pipeline_model_parallel_rank()
    stages = []
    for vp_stage in [None] if virtual_pipeline is None else range(virtual_pipeline):
        stage = pipeline_rank + (vp_stage or 0) * megatron_config.pipeline_model_parallel_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((seed or 0) + stage)  # no two stages begin with the same layers
            stages.append(_build_stage(config, megatron_config, vp_stage))
            if seed is not None and megatron_config.expert_model_parallel_size > 1:
                _draw_experts(stages[-1], seed + stage)
    return stages


@torch.no_grad()
def _draw_experts(model: GPTModel, seed: int) -> None:
    """Other fresh weights for the experts of each rank.  All ranks draw the same numbers, which is
    right for what they share and would make their experts copies of each other."""
    rank = parallel_state.get_expert_tensor_and_model_parallel_rank()
    torch.manual_seed(seed + (1 + rank) * 1_000_003)
    for name, weight in model.named_parameters():
        if not getattr(weight, "allreduce", True):  # Megatron's mark of an expert
            is_last = name.endswith("linear_fc2.weight")
            init = model.config.output_layer_init_method if is_last else model.config.init_method
            init(weight)


def _build_stage(
    config: ModelConfig, megatron_config: TransformerConfig, vp_stage: int | None
) -> GPTModel:
    first, last = (
        is_stage(ignore_virtual=False, vp_stage=vp_stage)
        for is_stage in (
            parallel_state.is_pipeline_first_stage,
            parallel_state.is_pipeline_last_stage,
        )
    )
    spec = block_spec(megatron_config, vp_stage)
    model = GPTModel(
        megatron_config,
        spec,
        vocab_size=config.padded_vocab_size(megatron_config.tensor_model_parallel_size),
        max_sequence_length=config.max_position_embeddings,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=config.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=config.rope_base,
        mtp_block_spec=mtp_spec(megatron_config, spec, vp_stage) if config.mtp_layers else None,
        vp_stage=vp_stage,
    )
    if config.mtp_layers:  # their losses; the output hook replaces that of the model itself
        model.compute_language_model_loss = partial(cross_entropy, vocab_size=config.vocab_size)
        if config.tie_embeddings and last and not first:
            # The heads brought the embedding to this stage, so that Megatron has no use for the
            # copy that it keeps in the output layer, and its checkpoints refuse it.
            model.output_layer.register_parameter("weight", None)
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
