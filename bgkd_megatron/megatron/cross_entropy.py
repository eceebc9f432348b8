"""Cross-entropy on the data's labels over the real vocabulary, in the place of Megatron's own."""

from __future__ import annotations

from megatron.core import parallel_state
from torch import Tensor

from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

__all__ = ["cross_entropy"]


def cross_entropy(labels: Tensor, logits: Tensor, *, vocab_size: int) -> Tensor:
    """Per-token losses [b, s] of labels [b, s] and vocab-parallel logits [s, b, V_local], which
    backward overwrites.

    As `compute_language_model_loss` of a model, whose own sums take the padding of the vocabulary
    for tokens: the loss would depend on the number of tensor-parallel ranks.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    shard = VocabShard.even(vocab_size, logits.shape[-1], group if group.size() > 1 else None)
    stats = vocab_stats(
        logits.flatten(0, 1),
        labels=labels.t().reshape(-1),
        features=Feature.LABEL,
        shard=shard,
        inplace_backward=logits.requires_grad,
    )
    return -stats.require("student_label_logprob").view(logits.shape[:2]).t()
