"""What a claim gives, by float64 autograd on the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bgkd_megatron.conformance.candidate import Reduction
from bgkd_megatron.conformance.claims import Claim
from bgkd_megatron.conformance.problems import Problem

__all__ = ["Expected", "Normalise", "expected", "label_terms", "reduced", "upstream"]

# Gradient from above of a loss that is a scalar: not 1, which would hide that it is not used.
SCALAR_UPSTREAM = 0.75

Normalise = Callable[[Tensor], Tensor]
"""Logits [N, V] -> log-probabilities."""


@dataclass(frozen=True)
class Expected:
    """What a right loss returns, by its definition in float64."""

    loss: Tensor
    """[N], or the scalar that the candidate claims."""
    gradient: Tensor
    """[N, V], columns of padding included."""


def label_terms(log_q: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy's terms [N, V]: -log q(label) at the label, 0 elsewhere."""
    at_label = labels[:, None] == torch.arange(log_q.shape[1])
    return torch.where(at_label, -log_q, 0.0)


def upstream(problem: Problem, reduction: Reduction) -> Tensor:
    """Gradient of each token's loss, whatever the candidate returns."""
    if reduction == "none":
        return problem.upstream
    weight = problem.valid.double() * SCALAR_UPSTREAM
    return weight / problem.valid.sum() if reduction == "mean" else weight


def reduced(losses: Tensor, valid: Tensor, reduction: Reduction) -> Tensor:
    """The claimed loss; masked tokens have none."""
    if reduction == "none":
        return losses.where(valid, 0.0)
    total = losses[valid].sum()
    return total / valid.sum() if reduction == "mean" else total


def expected(
    claim: Claim,
    problem: Problem,
    reduction: Reduction = "none",
    *,
    normalise_student: Normalise = lambda logits: logits.log_softmax(-1),
    token_weights: Tensor | None = None,
    columns_of_terms: slice | None = None,
) -> Expected:
    """The claim's losses and gradient.

    The keywords make it wrong, each in one respect: another normalisation of the student, another
    gradient from above [N], the terms of some columns alone.
    """
    size = problem.vocab_size
    logits = problem.student.double().requires_grad_()
    log_q = normalise_student(logits[:, :size])
    log_p = problem.teacher.double()[:, :size].log_softmax(-1)
    terms = claim.terms(log_q, log_p, label_terms(log_q, problem.labels))
    if columns_of_terms is not None:
        terms = terms[:, columns_of_terms]
    losses = terms.sum(-1)
    weights = upstream(problem, reduction) if token_weights is None else token_weights
    (gradient,) = torch.autograd.grad((losses * weights * problem.valid).sum(), logits)
    return Expected(reduced(losses.detach(), problem.valid, reduction), gradient)
