"""The hybrid distillation loss on vocabulary-parallel logits: statistics, then the objective."""

from __future__ import annotations

from torch import Tensor

from bgkd_megatron.objectives import HybridObjective, TokenLosses
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_stats import VocabShard, vocab_stats


def hybrid_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    objective: HybridObjective,
    *,
    shard: VocabShard,
    progress: float = 0.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
) -> tuple[TokenLosses, VocabStats]:
    """Per-token losses [N], and the statistics they and the metrics come from. Collective over
    `shard.tp_group`.

    Arguments as in `vocab_stats`; progress in [0, 1] is the fraction of the run that is done
    (schedules). Nothing is averaged: sum `losses.loss` and divide by the global number of valid
    tokens.
    """
    features = objective.features
    if labels is None:
        features &= ~Feature.LABEL  # metrics need it; whether the loss does, the objective says
    stats = vocab_stats(
        student_logits,
        teacher_logits,
        labels,
        shard=shard,
        features=features,
        temperature=objective.temperature,
        power_exponent=objective.power_exponent,
        ignore_index=ignore_index,
        inplace_backward=inplace_backward,
    )
    return objective(stats, progress), stats
