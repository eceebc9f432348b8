"""The hybrid distillation loss on vocabulary-parallel logits: statistics, then the objective."""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron import rank_check, vocab_arguments, vocab_fdiv
from bgkd_megatron.drawn_labels import drawn_labels
from bgkd_megatron.gradient_in_forward import losses_with_gradient
from bgkd_megatron.objectives import HybridObjective, TokenLosses
from bgkd_megatron.objectives.named import NamedObjective
from bgkd_megatron.sequence_layout import SequenceLayout
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
    seed: int | None = None,
    sequences: SequenceLayout | None = None,
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
        a gradient, for one backward. What the kernels cannot evaluate (a weighting of your own,
        two-sweep soft terms, hard="risk_guided"), float16, whose small gradients need the scale
        that comes in backward, and torch.compile take inplace_backward instead.
    tokens_per_chunk: with gradient_in_forward and tensor parallelism, so many tokens at a time, one
        all-gather each; `ops.tokens_in_cache` says how many fit. None: all at once.
    seed: of hard labels that are drawn; the same on the ranks of tp_group, another one for each
        microbatch. The statistics that come back then tell nothing about the label.
    sequences: how the tokens lie in sequences, for an objective in which neighbours play a part.
    Two-sweep soft terms (ObjectiveConfig.fdivergence) read both shards once more in forward, and
    exchange 8 N bytes per rank more.
    check_ranks compares the objective's configuration, the progress, the seed and the weights,
    too: a weighting of your own must return the same on all ranks.
    Raises as `vocab_stats` and HybridObjective, and ValueError for an objective of another
    vocabulary or one that needs labels which are not there.
    """
    group = shard.tp_group if check_ranks else None

    def prepared() -> StatsArguments:
        """The arguments, unless this rank refuses them; labels are not drawn yet."""
        _check_vocabulary(objective, shard)
        _check_labels(objective, labels)
        _check_teacher(objective, teacher_logits)
        features = objective.features
        if labels is None and not objective.config.draws_labels:
            features &= ~Feature.LABEL  # only metrics would read it
        options = StatsOptions(
            shard,
            int(features),
            objective.temperature(progress),
            objective.power_exponent,
            ignore_index,
            inplace_backward or gradient_in_forward,
        )
        arguments = StatsArguments(student_logits, teacher_logits, labels, options)
        if objective.config.draws_labels:
            _check_draw(arguments, objective, seed)
        if objective.fdivergence is not None:
            vocab_fdiv.check(arguments, objective.fdivergence)
        return arguments

    def facts(arguments: StatsArguments) -> dict[str, object]:
        own = {f"{name} of the objective": value for name, value in objective.config}
        own |= {"progress": float(progress), "tokens_per_chunk": tokens_per_chunk, "seed": seed}
        return own | vocab_arguments.facts(arguments)

    arguments = rank_check.agreed("hybrid_loss", prepared, facts, group)
    if objective.config.draws_labels:  # the first that communicates
        arguments = _with_drawn_labels(arguments, objective, seed)

    def local() -> tuple[NamedObjective | None, Tensor | None]:
        """What the kernels evaluate, if they do; partial statistics where they are needed."""
        named = None
        if gradient_in_forward and _is_possible(student_logits):
            named = objective.named(progress)
        refuse_all = group is not None  # what the operators refuse is to be heard of by all ranks
        return named, local_stats(arguments) if named is None or refuse_all else None

    named, partial = rank_check.agreed(
        "hybrid_loss",
        local,
        lambda of: {"gradient_in_forward, as possible": of[0] is not None},
        group,
    )
    if named is not None:
        losses, stats = losses_with_gradient(arguments, named, tokens_per_chunk)
        return losses, _without_drawn_labels(stats, objective)
    assert partial is not None
    if objective.fdivergence is None:
        stats = merged_stats(partial, arguments)
    else:
        stats, divergence = vocab_fdiv.merged_stats_and_fdiv(
            partial, arguments, objective.fdivergence
        )
        stats = stats._replace(fdivergence=divergence)
    losses = rank_check.agreed(
        "hybrid_loss",
        lambda: objective(stats, progress, sequences),
        lambda losses: {
            "the weights": [rank_check.digest(w) for w in (losses.soft_weight, losses.hard_weight)]
        },
        group,
    )
    return losses, _without_drawn_labels(stats, objective)


def _check_draw(arguments: StatsArguments, objective: HybridObjective, seed: int | None) -> None:
    """Refuses what a label cannot be drawn from."""
    if seed is None:
        raise ValueError(
            f"hybrid_loss: hard_label={objective.config.hard_label!r} needs a seed, the same on "
            "all ranks of the group and another one for each microbatch"
        )
    vocab_arguments.check(arguments)


def _with_drawn_labels(
    arguments: StatsArguments, objective: HybridObjective, seed: int | None
) -> StatsArguments:
    """The arguments with labels from the teacher or from nowhere."""
    assert seed is not None
    student_logits, teacher_logits, labels, options = arguments
    drawn = drawn_labels(
        teacher_logits if objective.config.hard_label == "teacher_sample" else None,
        labels,
        num_tokens=student_logits.shape[0],
        shard=options.shard,
        seed=seed,
        device=student_logits.device,
        ignore_index=options.ignore_index,
    )
    return arguments._replace(labels=drawn)


def _without_drawn_labels(stats: VocabStats, objective: HybridObjective) -> VocabStats:
    """So that nobody takes log q of a drawn token for the likelihood of the data."""
    if not objective.config.draws_labels:
        return stats
    return stats._replace(student_label_logprob=None, teacher_label_logprob=None)


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
            f"hybrid_loss: the objective reads the data's labels (hard_label="
            f"{objective.config.hard_label!r}, weighting={objective.config.weighting!r}), so they "
            "must be token ids [N], got None: pass labels, or take hard_label='teacher_argmax' and "
            "a weighting that reads none"
        )


def _check_teacher(objective: HybridObjective, teacher_logits: Tensor | None) -> None:
    is_read = Feature.TEACHER in objective.features
    if is_read != (teacher_logits is not None):
        config = objective.config
        raise ValueError(
            f"hybrid_loss: the objective (soft={config.soft!r}, weighting={config.weighting!r}, "
            f"soft_weight={config.soft_weight}, hard_label={config.hard_label!r}) "
            + (
                "reads the teacher's logits: pass teacher_logits"
                if is_read
                else "has no use for a teacher: pass teacher_logits=None"
            )
        )


def _is_possible(student_logits: Tensor) -> bool:
    """Whether the gradient can be computed in forward."""
    return (
        student_logits.requires_grad
        and torch.is_grad_enabled()
        and student_logits.dtype != torch.float16
        and not torch.compiler.is_compiling()
    )
