"""The architecture of one model, as stored in ``model.json`` of a model directory.

Covers the Llama family (Llama, Qwen, SmolLM, Mistral without window): RMSNorm before each block,
SwiGLU, rotary positions, grouped-query attention.  Free of torch and Megatron, so that converters
and checks import it cheaply.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from bgkd_megatron.final_logits import FinalLogits
from bgkd_megatron.settings import Count, Section, explain

# What lies in a model directory.
MODEL_FILE = "model.json"
WEIGHTS_DIR = "weights"
TOKENIZER_DIR = "tokenizer"
# Megatron's own default (make_vocab_size_divisible_by): every rank's columns are a multiple of a
# GEMM tile.
VOCAB_MULTIPLE = 128


class ExpertsConfig(Section):
    """A mixture of experts in the place of each feed-forward block."""

    num_experts: Count
    experts_per_token: Count = 2
    ffn_hidden_size: Count
    """of one expert"""
    aux_loss: NonNegativeFloat = 0.01
    """Weight of the router's load-balancing loss, which training adds to its own."""

    @model_validator(mode="after")
    def _has_enough(self) -> ExpertsConfig:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must not be above num_experts "
                f"({self.num_experts})"
            )
        return self


class ModelConfig(Section):
    """Sizes and switches of a Llama-like decoder.

    vocab_size is the real vocabulary: the columns that may ever be predicted.  Padding is a matter
    of the layout, see `padded_vocab_size`.  head_dim defaults to hidden_size /
    num_attention_heads.
    Raises pydantic.ValidationError (a ValueError) for unknown fields and impossible sizes.
    """

    num_layers: Count
    hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count
    ffn_hidden_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    rope_base: PositiveFloat = 10000.0
    norm_epsilon: PositiveFloat = 1e-5
    tie_embeddings: bool = False
    qk_layernorm: bool = False
    qkv_bias: bool = False
    head_dim: Count | None = None
    experts: ExpertsConfig | None = None
    mtp_layers: NonNegativeInt = 0
    """Heads that predict tokens further ahead; they learn the data's tokens, whatever the loss."""
    logit_scale: PositiveFloat = 1.0
    final_logit_softcap: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_query_groups ({self.num_query_groups})"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}): set head_dim"
            )
        return self

    @property
    def kv_channels(self) -> int:
        """Channels of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def final_logits(self) -> FinalLogits:
        """From the output layer's logits to those of the distribution."""
        return FinalLogits(self.logit_scale, self.final_logit_softcap)

    def without_heads(self) -> ModelConfig:
        """As a teacher needs it: what looks further ahead than the next token is not asked for."""
        return self.model_copy(update={"mtp_layers": 0})

    def weight_layout(self) -> dict[str, Any]:
        """What decides which weights there are and what they mean.  The rest may be edited, as for
        a longer context: positions, and the epsilon of the norms."""
        return self.model_dump(exclude={"max_position_embeddings", "rope_base", "norm_epsilon"})

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """Rows of the embedding and of the output layer over all ranks.

        vocab_size rounded up to a multiple of 128 * tensor_parallel: the rule of Megatron's
        calculate_padded_vocab_size.
        """
        multiple = VOCAB_MULTIPLE * tensor_parallel
        return -(-self.vocab_size // multiple) * multiple

    @classmethod
    def read(cls, model_dir: str | Path) -> ModelConfig:
        """The configuration in DIR/model.json.  Raises OSError or ValueError."""
        path = Path(model_dir) / MODEL_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: {model_dir} is not a model directory "
                "(make one with python -m bgkd_megatron.convert.from_hf)"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} cannot be used: {explain(error)}") from error

    def write(self, model_dir: str | Path) -> None:
        """Write DIR/model.json (the directory must exist)."""
        text = json.dumps(self.model_dump(), indent=2) + "\n"
        (Path(model_dir) / MODEL_FILE).write_text(text)
