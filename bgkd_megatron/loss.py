"""The hybrid distillation loss on vocabulary-parallel logits: statistics, then the objective."""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron import rank_check, vocab_arguments
from bgkd_megatron.gradient_in_forward import losses_with_gradient
from bgkd_megatron.objectives import HybridObjective, TokenLosses
from bgkd_megatron.objectives.named import NamedObjective
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
    gradient_in_forward: bool = False,
    tokens_per_chunk: int | None = None,
    check_ranks: bool = False,
) -> tuple[TokenLosses, VocabStats]:
    """Per-token losses [N], and the statistics they and the metrics come from. Collective over
    `shard.tp_group`.

    Arguments as in `vocab_stats`; progress in [0, 1] is the fraction of the run that is done
    (schedules). Nothing is averaged: sum `losses.loss` and divide by the global number of valid
    tokens.
    gradient_in_forward: the gradient overwrites the student's logits already here, so that they are
        read once where a row stays on the chip; nobody may read them afterwards (an activation
        checkpoint around the loss must hold the output layer, too), and only `losses.loss` has
        a gradient, for one backward. What the kernels cannot evaluate (a weighting of your own, no
        soft term), float16, whose small gradients need the scale that comes in backward, and
        torch.compile take inplace_backward instead.
    tokens_per_chunk: with gradient_in_forward and tensor parallelism, so many tokens at a time, one
        all-gather each; `ops.tokens_in_cache` says how many fit. None: all at once.
    check_ranks compares the objective's configuration, the progress and the soft weights,
    too: a weighting of your own must return the same on all ranks.
    Raises as `vocab_stats` and HybridObjective, and ValueError for an objective of another
    vocabulary or one that needs labels which are not there.
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
        inplace_backward or gradient_in_forward,
    )
    arguments = StatsArguments(student_logits, teacher_logits, labels, options)

    group = shard.tp_group if check_ranks else None

    def local() -> tuple[NamedObjective | None, Tensor | None]:
        """What the kernels evaluate, if they do; partial statistics where they are needed."""
        _check_vocabulary(objective, shard)
        _check_labels(objective, labels)
        named = None
        if gradient_in_forward and _is_possible(student_logits):
            named = objective.named(progress)
        refuse_all = group is not None  # what the operators refuse is to be heard of by all ranks
        return named, local_stats(arguments) if named is None or refuse_all else None

    def facts(of: tuple[NamedObjective | None, Tensor | None]) -> dict[str, object]:
        own = {
            "objective": objective.config,
            "progress": float(progress),
            "gradient_in_forward, as possible": of[0] is not None,
            "tokens_per_chunk": tokens_per_chunk,
        }
        return own | vocab_arguments.facts(arguments)

    named, partial = rank_check.agreed("hybrid_loss", local, facts, group)
    if named is not None:
        return losses_with_gradient(arguments, named, tokens_per_chunk)
    assert partial is not None
    stats = merged_stats(partial, arguments)
    losses = rank_check.agreed(
        "hybrid_loss",
        lambda: objective(stats, progress),
        lambda losses: {"the soft weights": rank_check.digest(losses.soft_weight)},
        group,
    )
    return losses, stats


def _check_vocabulary(objective: HybridObjective, shard: VocabShard) -> None:
    if objective.vocab_size != shard.vocab_size:
        raise ValueError(
            f"hybrid_loss: the objective is of a vocabulary of {objective.vocab_size} token ids, "
            f"the shard of one of {shard.vocab_size}: give both the real vocabulary, without "
            "padding"
        )


def _check_labels(objective: HybridObjective, labels: Tensor | None) -> None:
    if labels is None and objective.needs_labels:
        raise ValueError(
            'hybrid_loss: the objective\'s hard_label is "data", so labels must be token ids [N], '
            'got None: pass labels, or take hard_label="teacher_argmax", which needs none'
        )


def _is_possible(student_logits: Tensor) -> bool:
    """Whether the gradient can be computed in forward."""
    return (
        student_logits.requires_grad
        and torch.is_grad_enabled()
        and student_logits.dtype != torch.float16
        and not torch.compiler.is_compiling()
    )
