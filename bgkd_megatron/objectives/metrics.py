"""Per-token metrics from the statistics that the loss has already paid for."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_stats import all_gather

__all__ = ["STUDENT_METRICS", "TEACHER_METRICS", "bridges_and_gardens", "token_metrics"]

STUDENT_METRICS = Feature.LABEL | Feature.STUDENT_ENTROPY
TEACHER_METRICS = (
    Feature.TEACHER | Feature.FORWARD_KL | Feature.REVERSE_KL | Feature.TEACHER_ENTROPY
)
"""With both `token_metrics` has all its metrics.  They need no further read of the logits; each
statistic is one number per token for the ranks to exchange."""


@torch.no_grad()
def token_metrics(
    stats: VocabStats, losses: TokenLosses, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Metrics of N tokens: each Tensor [N] float32, without gradient, 0 on rows that are not valid.

    labels: [N] int64 global ids, needed for the accuracies.
    A metric is there when its statistics are:

    always                           loss, hard_loss, soft_loss, soft_weight, hard_weight
    entropies, KLs (temperature 1)   student_entropy, teacher_entropy, forward_kl, reverse_kl
    log-probabilities of the label   nll, teacher_nll
    argmax, with labels              accuracy, teacher_accuracy: is it the label
    the teacher's maximum            teacher_confidence = max p; agreement of the two argmax
    """
    metrics = {
        "loss": losses.loss,
        "hard_loss": losses.hard,
        "soft_loss": losses.soft,
        "soft_weight": losses.soft_weight,
        "hard_weight": losses.hard_weight,
    }
    for name in ("student_entropy", "teacher_entropy", "forward_kl", "reverse_kl"):
        if (value := getattr(stats, name)) is not None:
            metrics[name] = value
    if stats.student_label_logprob is not None:
        metrics["nll"] = -stats.student_label_logprob
    if stats.teacher_label_logprob is not None:
        metrics["teacher_nll"] = -stats.teacher_label_logprob
    if stats.teacher_max_logprob is not None:
        metrics["teacher_confidence"] = stats.teacher_max_logprob.exp()
    if stats.teacher_argmax is not None:
        metrics["agreement"] = stats.student_argmax == stats.teacher_argmax
    if labels is not None:
        metrics["accuracy"] = stats.student_argmax == labels
        if stats.teacher_argmax is not None:
            metrics["teacher_accuracy"] = stats.teacher_argmax == labels
    zero = torch.zeros_like(stats.student_lse)
    return {name: torch.where(stats.valid, value, zero) for name, value in metrics.items()}


@torch.no_grad()
def bridges_and_gardens(
    stats: VocabStats,
    fraction: float = 0.25,
    by: str = "entropy",
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """{"bridge": [N] bool, "garden": [N] bool}: the tokens of which the teacher is surest, and
    those of which it is least sure; this fraction of the valid ones each, more where they are tied.

    by: "entropy" of the teacher, or its "confidence", the probability of its likeliest token.
    The quantiles are those of these N tokens, or of the N each that the ranks of `group` have, as
    those that share a sequence (collective).  Raises ValueError for another fraction than one
    in (0, 0.5], and when the statistic was not computed.
    """
    if not 0.0 < fraction <= 0.5:
        raise ValueError(f"fraction must be above 0 and at most 0.5, got {fraction}")
    if by not in ("entropy", "confidence"):
        raise ValueError(f"by must be 'entropy' or 'confidence', got {by!r}")
    doubt = -stats.require("teacher_max_logprob")
    if by == "entropy":
        doubt = stats.require("teacher_entropy")
    doubt = torch.where(stats.valid, doubt, torch.nan)  # in no bucket
    if not doubt.numel():
        return {"bridge": stats.valid, "garden": stats.valid}
    of_all = doubt
    if group is not None and group.size() > 1:
        of_all = doubt.new_empty(group.size() * doubt.numel())
        all_gather(of_all, doubt, group=group)
    low, high = of_all.nanquantile(doubt.new_tensor([fraction, 1.0 - fraction]))
    return {"bridge": doubt <= low, "garden": doubt >= high}
