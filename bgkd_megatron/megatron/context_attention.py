"""Attention over a sequence that several ranks share, for machines without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bgkd_megatron.sequence_layout import piece_of

__all__ = ["GatheredAttention"]


class GatheredAttention(MegatronModule):
    """Causal self-attention of this rank's queries to the keys of the whole sequence.

    Keys and values of all context-parallel ranks are gathered, their gradients reduced to the rank
    that they came from: one collective each way, and the memory of a whole sequence's keys.
    Megatron's own DotProductAttention refuses context parallelism.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self._cp_group = parallel_state.get_context_parallel_group()
        self._softmax_scale = softmax_scale
        self._dropout = config.attention_dropout

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """query [s, b, heads, channels]; key, value [s, b, groups, channels] -> [s, b, h].

        attention_mask is not read: a token attends to itself and to those before it.
        """
        seq_length, batch_size = query.shape[:2]
        size, rank = self._cp_group.size(), self._cp_group.rank()
        key, value = (
            gather_from_sequence_parallel_region(x, group=self._cp_group).permute(1, 2, 0, 3)
            for x in (key, value)
        )  # [b, groups, s * size, channels], rank after rank
        positions = torch.arange(seq_length * size, device=query.device)
        own = piece_of(positions, rank, size)
        gathered = torch.cat([piece_of(positions, other, size) for other in range(size)])
        context = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key,
            value,
            attn_mask=own[:, None] >= gathered,
            dropout_p=self._dropout if self.training else 0.0,
            scale=self._softmax_scale,
            enable_gqa=True,
        )
        return context.permute(2, 0, 1, 3).reshape(seq_length, batch_size, -1)
