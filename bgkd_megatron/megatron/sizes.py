"""Parameters and memory of each rank, from the configuration alone.  Free of torch and Megatron."""

from __future__ import annotations

from dataclasses import dataclass

from bgkd_megatron.megatron.config import ParallelConfig, TrainConfig
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.stages import stage_layers

__all__ = ["RankSizes", "parameters", "rank_sizes"]


@dataclass(frozen=True)
class RankSizes:
    """What a rank of one pipeline rank holds; memory in bytes."""

    pipeline_rank: int
    student_layers: int
    teacher_layers: int
    student_parameters: int
    teacher_parameters: int
    weights: int
    """student and teacher"""
    gradients: int
    """of the student, float32"""
    optimizer: int
    """both moments and, of 16-bit weights, the float32 ones"""
    logits: int
    """of a microbatch, student and teacher"""
    teacher_states: int
    """hidden states of the microbatches that the teacher is ahead, on the device"""

    @property
    def total(self) -> int:
        """Without activations, buffers of libraries and what the allocator cannot use."""
        return self.weights + self.gradients + self.optimizer + self.logits + self.teacher_states


def parameters(
    model: ModelConfig, layout: ParallelConfig, pieces: list[list[str]]
) -> tuple[int, int]:
    """(dense, of experts): parameters of a rank that holds `pieces` of a pipeline's stages."""
    held = [module for piece in pieces for module in piece]
    tp, hidden = layout.tensor_parallel, model.hidden_size
    vocabulary = model.padded_vocab_size(tp) // tp * hidden
    channels = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels // tp
    attention = channels * hidden + model.num_attention_heads * model.kv_channels // tp * hidden
    attention += channels if model.qkv_bias else 0
    attention += 2 * model.kv_channels if model.qk_layernorm else 0
    dense = attention + 2 * hidden
    of_experts = 0
    if model.experts is None:
        dense += 3 * hidden * model.ffn_hidden_size // tp
    else:
        dense += model.experts.num_experts * hidden  # the router
        local = model.experts.num_experts // layout.expert_parallel
        of_experts = local * 3 * hidden * model.experts.ffn_hidden_size // tp
    layers = held.count("decoder") + held.count("mtp")
    total = dense * layers + held.count("mtp") * (3 * hidden + 2 * hidden * hidden // tp)
    # The embedding is where tokens come in: at the front, and at the heads that look further ahead.
    total += vocabulary * sum("embedding" in p or "mtp" in p for p in pieces)
    if "loss" in held:
        total += hidden  # the final norm
        shares = model.tie_embeddings and any(
            "loss" in p and ("embedding" in p or "mtp" in p) for p in pieces
        )
        total += 0 if shares else vocabulary
    return total, of_experts * layers


def rank_sizes(
    config: TrainConfig, student: ModelConfig, teacher: ModelConfig | None, world_size: int
) -> list[RankSizes]:
    """Of the ranks of each pipeline rank; all others have the same."""
    return [
        _rank_sizes(config, student, teacher, world_size, rank)
        for rank in range(config.parallel.pipeline_parallel)
    ]


def _rank_sizes(
    config: TrainConfig,
    student: ModelConfig,
    teacher: ModelConfig | None,
    world_size: int,
    rank: int,
) -> RankSizes:
    layout, training = config.parallel, config.training
    mine = _pieces(student, layout, config.student.layers_per_stage, rank)
    dense, of_experts = parameters(student, layout, mine)
    trained = dense + of_experts
    taught: list[list[str]] = []
    frozen = 0
    if teacher is not None and config.teacher is not None:
        teacher = teacher.without_heads()
        taught = _pieces(teacher, layout, config.teacher.layers_per_stage, rank)
        frozen = sum(parameters(teacher, layout, taught))
    width = 2 if training.precision == "bf16" else 4
    states = 8 + (4 if width == 2 else 0)
    shares = expert_shares = 1
    if layout.distributed_optimizer:
        shares = world_size // (layout.tensor_parallel * layout.pipeline_parallel)
        expert_shares = shares // layout.expert_parallel
    tokens = training.micro_batch_size * config.data.seq_length // layout.context_parallel
    is_last = rank == layout.pipeline_parallel - 1
    logits = teacher_states = 0
    if is_last:
        columns = student.padded_vocab_size(layout.tensor_parallel) // layout.tensor_parallel
        logits = tokens * columns * width * (1 if teacher is None else 2)
    if is_last and teacher is not None and config.teacher is not None:
        microbatches = training.global_batch_size // (
            training.micro_batch_size * (world_size // layout.ranks_per_replica)
        )
        ahead = 1
        if layout.pipeline_parallel > 1:
            ahead = min(config.teacher.microbatches_ahead or microbatches, microbatches)
        ahead = 1 if config.teacher.offload else ahead
        teacher_states = ahead * tokens * teacher.hidden_size * width
    return RankSizes(
        pipeline_rank=rank,
        student_layers=sum(piece.count("decoder") for piece in mine),
        teacher_layers=sum(piece.count("decoder") for piece in taught),
        student_parameters=trained,
        teacher_parameters=frozen,
        weights=(trained + frozen) * width,
        gradients=trained * 4,
        optimizer=dense * states // shares + of_experts * states // expert_shares,
        logits=logits,
        teacher_states=teacher_states,
    )


def _pieces(
    model: ModelConfig, layout: ParallelConfig, layers_per_stage: list[int] | None, rank: int
) -> list[list[str]]:
    """The stages of one pipeline rank."""
    stages = stage_layers(model.num_layers, layout.stages, layers_per_stage, model.mtp_layers)
    return stages[rank :: layout.pipeline_parallel]
