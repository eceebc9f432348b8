"""The hybrid distillation loss on vocabulary-parallel logits: statistics, then the objective."""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron import rank_check
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
    check_ranks: bool = False,
) -> tuple[TokenLosses, VocabStats]:
    """Per-token losses [N], and the statistics they and the metrics come from. Collective over
    `shard.tp_group`.

    Arguments as in `vocab_stats`; progress in [0, 1] is the fraction of the run that is done
    (schedules). Nothing is averaged: sum `losses.loss` and divide by the global number of valid
    tokens. check_ranks compares the objective's configuration and the progress, too.
    Raises as `vocab_stats`, and ValueError for an objective of another vocabulary.
    """
    if objective.vocab_size != shard.vocab_size:
        raise ValueError(
            f"hybrid_loss: the objective is of a vocabulary of {objective.vocab_size} token ids, "
            f"the shard of one of {shard.vocab_size}: give both the real vocabulary, without "
            "padding"
        )
    if check_ranks and not torch.compiler.is_compiling():
        facts = {"objective": objective.config, "progress": progress}
        rank_check.require_same("hybrid_loss", facts, shard.tp_group)
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
        check_ranks=check_ranks,
    )
    return objective(stats, progress), stats
