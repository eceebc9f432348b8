"""The hybrid distillation loss on vocabulary-parallel logits: statistics, then the objective."""

from __future__ import annotations

from torch import Tensor

from bgkd_megatron import rank_check, vocab_arguments
from bgkd_megatron.objectives import HybridObjective, TokenLosses
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_arguments import StatsArguments, StatsOptions
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import local_stats, merged_stats


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
    tokens. check_ranks compares the objective's configuration, the progress and the soft weights,
    too: a weighting of your own must return the same on all ranks.
    Raises as `vocab_stats` and HybridObjective, and ValueError for an objective of another
    vocabulary.
    """
    features = objective.features
    if labels is None:
        features &= ~Feature.LABEL  # metrics need it; whether the loss does, the objective says
    options = StatsOptions(
        shard,
        int(features),
        objective.temperature,
        objective.power_exponent,
        ignore_index,
        inplace_backward,
    )
    arguments = StatsArguments(student_logits, teacher_logits, labels, options)

    def local() -> Tensor:
        if objective.vocab_size != shard.vocab_size:
            raise ValueError(
                f"hybrid_loss: the objective is of a vocabulary of {objective.vocab_size} token "
                f"ids, the shard of one of {shard.vocab_size}: give both the real vocabulary, "
                "without padding"
            )
        return local_stats(arguments)

    def facts(_: Tensor) -> dict[str, object]:
        own = {"objective": objective.config, "progress": float(progress)}
        return own | vocab_arguments.facts(arguments)

    group = shard.tp_group if check_ranks else None
    partial = rank_check.agreed("hybrid_loss", local, facts, group)
    stats = merged_stats(partial, arguments)
    losses = rank_check.agreed(
        "hybrid_loss",
        lambda: objective(stats, progress),
        lambda losses: {"the soft weights": rank_check.digest(losses.soft_weight)},
        group,
    )
    return losses, stats
