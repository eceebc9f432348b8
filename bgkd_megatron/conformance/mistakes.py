"""The known ways to be wrong, each as a prediction: what a loss with this mistake would return.

A measured loss that is wrong is compared with every prediction; a name is only given to what agrees
with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate
from bgkd_megatron.conformance.claims import Claim
from bgkd_megatron.conformance.expected import expected, reduced
from bgkd_megatron.conformance.problems import Problem

__all__ = [
    "MISTAKES",
    "Prediction",
    "gradient_predictions",
    "two_path_gradients",
    "value_predictions",
]

MISTAKES = {
    "non-autograd all-reduce": "the gradient lacks what reaches this rank's logits through the "
    "sums of other ranks",
    "doubled backward": "the gradient is multiplied by the number of ranks, for the backward of a "
    "collective sums what every rank already has",
    "constant normaliser": "no gradient flows through the sum of exponentials",
    "ignored upstream gradient": "the gradient that comes from above is not applied per token",
    "no gradient": "the gradient is 0",
    "scaled gradient": "the gradient is a constant times the right one",
    "missing vocabulary shift": "every rank looks up labels as if its columns began at id 0",
    "cross term alone": "-sum p log q in place of the KL, which is larger by the teacher's entropy",
    "renormalised top-k": "both distributions are renormalised over the teacher's likeliest tokens",
    "top-k without the tail": "the sum has only the teacher's likeliest tokens",
    "partial loss": "every rank returns its own part of the sum over the vocabulary",
    "softmax of the shard": "every rank normalises over its own columns",
    "columns of padding": "columns that no token has are in the sums",
    "other reduction": "the loss is a constant times the claimed one",
    "not finite": "overflow, underflow or 0 * inf",
    "ranks disagree": "the ranks return different losses",
    "masked tokens": "a masked token has a loss or a gradient",
    "rounding": "right, but rounded more than its tolerance allows",
    "unexplained": "wrong in a way that has no name here",
}


@dataclass(frozen=True)
class Prediction:
    """What a loss with this mistake would return."""

    mistake: str
    values: tuple[Tensor, ...]
    """The loss of each rank, or the gradient on the whole vocabulary."""
    detail: str = ""


def _shards(problem: Problem, tp_size: int) -> Iterator[slice]:
    """Of the real columns."""
    for rank in range(tp_size):
        columns = problem.columns(rank, tp_size)
        yield slice(columns.start, min(columns.stop, problem.vocab_size))


# ---- values


def value_predictions(candidate: Candidate, problem: Problem, tp_size: int) -> Iterator[Prediction]:
    """The values of all known mistakes, on this problem cut over tp_size ranks."""
    claim, reduction = candidate.claim, candidate.reduction
    parts = [
        expected(claim, problem, reduction, columns_of_terms=shard).loss
        for shard in _shards(problem, tp_size)
    ]
    if tp_size > 1:
        yield Prediction("partial loss", tuple(parts))
        alone = _normalised_alone(claim, problem, tp_size)
        each = tuple(reduced(losses, problem.valid, reduction) for losses in alone)
        yield Prediction("softmax of the shard", each)
        total = reduced(sum(alone, torch.zeros(())), problem.valid, reduction)
        yield Prediction("softmax of the shard", (total,) * tp_size)
    if claim.needs_labels and tp_size > 1:
        for losses in _labels_from_zero(claim, problem, tp_size):
            wrong = reduced(losses, problem.valid, reduction)
            yield Prediction("missing vocabulary shift", (wrong,) * tp_size)
    if claim.name == "forward_kl":
        cross = reduced(_cross_terms(problem), problem.valid, reduction)
        yield Prediction("cross term alone", (cross,) * tp_size)
        yield Prediction("cross term alone", (-cross,) * tp_size, "and with the other sign")
        for mistake, k, losses in _truncated(problem):
            value = reduced(losses, problem.valid, reduction)
            yield Prediction(mistake, (value,) * tp_size, f"k = {k}")


def _normalised_alone(claim: Claim, problem: Problem, tp_size: int) -> list[Tensor]:
    """What each rank gets that knows nothing of the others."""
    losses = []
    for shard in _shards(problem, tp_size):
        log_q = problem.student[:, shard].double().log_softmax(-1)
        log_p = problem.teacher[:, shard].double().log_softmax(-1)
        ids = torch.arange(shard.start, shard.stop)
        hard = torch.where(problem.labels[:, None] == ids, -log_q, 0.0)
        losses.append(claim.terms(log_q, log_p, hard).sum(-1))
    return losses


def _labels_from_zero(claim: Claim, problem: Problem, tp_size: int) -> Iterator[Tensor]:
    """The label's logit, or its log-probability, is the sum of what each rank finds at column
    `label`, 0 where it has none; the normaliser is right."""
    size = problem.vocab_size
    logits = problem.student.double()[:, :size]
    normaliser = logits.logsumexp(-1)
    log_p = problem.teacher.double()[:, :size].log_softmax(-1)
    found, num_found = torch.zeros_like(normaliser), torch.zeros_like(normaliser)
    for shard in _shards(problem, tp_size):
        own = logits[:, shard]
        inside = problem.labels < own.shape[1]
        at = problem.labels.where(inside, 0)[:, None]
        found += own.gather(1, at)[:, 0].where(inside, 0.0)
        num_found += inside
    for loss in (normaliser - found, num_found * normaliser - found):
        hard = torch.zeros_like(logits)
        hard[:, 0] = loss
        yield claim.terms(logits.log_softmax(-1), log_p, hard).sum(-1)


def _cross_terms(problem: Problem) -> Tensor:
    """-sum_v p_v log q_v."""
    size = problem.vocab_size
    log_p = problem.teacher.double()[:, :size].log_softmax(-1)
    return -(log_p.exp() * problem.student.double()[:, :size].log_softmax(-1)).sum(-1)


def _truncated(problem: Problem) -> Iterator[tuple[str, int, Tensor]]:
    """Forward KL of the teacher's k likeliest tokens, for every k below the vocabulary."""
    size = problem.vocab_size
    log_p, order = problem.teacher.double()[:, :size].log_softmax(-1).sort(-1, descending=True)
    log_q = problem.student.double()[:, :size].log_softmax(-1).gather(-1, order)
    kl = (log_p.exp() * (log_p - log_q)).cumsum(-1)
    p_mass, q_mass = log_p.exp().cumsum(-1), log_q.exp().cumsum(-1)
    renormalised = kl / p_mass - p_mass.log() + q_mass.log()
    for k in range(1, size):
        yield "renormalised top-k", k, renormalised[:, k - 1]
        yield "top-k without the tail", k, kl[:, k - 1]


# ---- gradients, where the value is right


def gradient_predictions(
    candidate: Candidate, problem: Problem, tp_size: int
) -> Iterator[Prediction]:
    claim, reduction = candidate.claim, candidate.reduction
    right = expected(claim, problem, reduction).gradient
    yield Prediction("no gradient", (torch.zeros_like(right),))
    yield Prediction("rounding", (right.bfloat16().double(),), "to bfloat16")
    if tp_size > 1:
        for through_maximum in (False, True):
            part = _own_part(candidate, problem, tp_size, through_maximum=through_maximum)
            detail = "and there is one through the maximum" if through_maximum else ""
            yield Prediction("non-autograd all-reduce", (part,), detail)
    if reduction == "none":
        ones = torch.ones_like(problem.upstream)
        weights = {"1": ones, "its mean": ones * problem.upstream[problem.valid].mean()}
        for name, weight in weights.items():
            wrong = expected(claim, problem, reduction, token_weights=weight).gradient
            yield Prediction("ignored upstream gradient", (wrong,), f"as if it were {name}")


def _own_part(
    candidate: Candidate, problem: Problem, tp_size: int, *, through_maximum: bool
) -> Tensor:
    """Each rank differentiates its own terms, through its own share of the normaliser.

    through_maximum: and through the maximum that was subtracted, which the shares of all ranks
    together, but not one of them, make irrelevant.
    """
    gradient = torch.zeros(problem.student.shape, dtype=torch.float64)
    for shard in _shards(problem, tp_size):

        def seen(logits: Tensor, shard: slice = shard) -> Tensor:
            """Log-probabilities, of which this rank's logits and no others are variables."""
            own = logits[:, shard]
            fixed = logits.detach()
            top = fixed.amax(-1, keepdim=True)
            if through_maximum:
                maximum = own.max(-1, keepdim=True).values
                top = top + maximum - maximum.detach()
            total = (fixed - top.detach()).exp().sum(-1, keepdim=True)
            share = (own - top).exp().sum(-1, keepdim=True)
            total = total - share.detach() + share
            return logits - top - total.log()

        own = expected(
            candidate.claim,
            problem,
            candidate.reduction,
            normalise_student=seen,
            columns_of_terms=shard,
        )
        gradient[:, shard] = own.gradient[:, shard]
    return gradient


def two_path_gradients(candidate: Candidate, problem: Problem) -> Sequence[Tensor]:
    """The gradient in two parts: what does not pass through the normaliser, and what does."""

    def constant_normaliser(logits: Tensor) -> Tensor:
        return logits - logits.detach().logsumexp(-1, keepdim=True)

    claim, reduction = candidate.claim, candidate.reduction
    direct = expected(claim, problem, reduction, normalise_student=constant_normaliser).gradient
    return direct, expected(claim, problem, reduction).gradient - direct
