"""The formulas in eager PyTorch, in float32 as a careful implementation does it.

Each is written to be fast: of log_softmax and softmax only what the formula needs, nothing computed
twice, the vocabulary summed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = [
    "DOCUMENT_TOKENS",
    "adaptive_kl",
    "alpha_beta",
    "at_temperature",
    "confidence_of_label",
    "confidence_of_maximum",
    "cross_entropy",
    "cross_entropy_to_argmax",
    "entropy",
    "entropy_regularized",
    "forward_kl",
    "hybrid",
    "jensen_shannon",
    "kl_div",
    "mean_of",
    "reverse_kl",
    "risk_guided",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "tsallis",
    "wsl",
]

EagerLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student_logits, teacher_logits, labels) -> mean loss"""
Divergence = Callable[[Tensor, Tensor], Tensor]
"""(z, t): logits of student and teacher in float32 -> [N]"""
SoftWeight = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | float]
"""(log_q, log_p, p, labels) -> w_s [N]"""

DOCUMENT_TOKENS = 16
"""Tokens of a document, where neighbours play a part."""


def mean_of(divergence: Divergence) -> EagerLoss:
    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return divergence(student.float(), teacher.float()).mean()

    return loss


# ---- divergences of one sweep


def forward_kl(z: Tensor, t: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(t, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def reverse_kl(z: Tensor, t: Tensor) -> Tensor:
    return forward_kl(t, z)


def at_temperature(divergence: Divergence, temperature: float) -> Divergence:
    return lambda z, t: temperature**2 * divergence(z / temperature, t / temperature)


def adaptive_kl(z: Tensor, t: Tensor, mu: float = 0.5) -> Tensor:
    log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(t, dim=-1)
    q, p, log_ratio = log_q.exp(), log_p.exp(), log_p - log_q
    entropy_q, entropy_p = -(q * log_q).sum(dim=-1), -(p * log_p).sum(dim=-1)
    weight = torch.sigmoid(mu * (entropy_q - entropy_p))
    forward, reverse = (p * log_ratio).sum(dim=-1), -(q * log_ratio).sum(dim=-1)
    return weight * forward + (1 - weight) * reverse


def entropy_regularized(z: Tensor, t: Tensor, factor: float = 0.1) -> Tensor:
    """Forward KL, less some of the student's entropy."""
    log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(t, dim=-1)
    negative_entropy = (log_q.exp() * log_q).sum(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1) + factor * negative_entropy


# ---- divergences of two sweeps


def jensen_shannon(z: Tensor, t: Tensor) -> Tensor:
    """lambda = 1/2"""
    log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(t, dim=-1)
    q, p = log_q.exp(), log_p.exp()
    log_m = (0.5 * (q + p)).log()
    return 0.5 * (q * (log_q - log_m) + p * (log_p - log_m)).sum(dim=-1)


def skew_forward_kl(z: Tensor, t: Tensor, lam: float = 0.1) -> Tensor:
    q, log_p = F.softmax(z, dim=-1), F.log_softmax(t, dim=-1)
    p = log_p.exp()
    return (p * (log_p - torch.lerp(q, p, lam).log())).sum(dim=-1)


def skew_reverse_kl(z: Tensor, t: Tensor, lam: float = 0.1) -> Tensor:
    log_q, p = F.log_softmax(z, dim=-1), F.softmax(t, dim=-1)
    q = log_q.exp()
    return (q * (log_q - torch.lerp(p, q, lam).log())).sum(dim=-1)


def total_variation(z: Tensor, t: Tensor) -> Tensor:
    return 0.5 * (F.softmax(t, dim=-1) - F.softmax(z, dim=-1)).abs().sum(dim=-1)


def alpha_beta(a: float, b: float) -> Divergence:
    """Each branch by its own formula."""

    def divergence(z: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(t, dim=-1)
        if a == b == 0:
            return 0.5 * (log_q - log_p).square().sum(dim=-1)
        if b == 0:
            p_power, q_power = (a * log_p).exp(), (a * log_q).exp()
            return (p_power * (a * (log_p - log_q) - 1) + q_power).sum(dim=-1) / a**2
        if a == 0:
            p_power, q_power = (b * log_p).exp(), (b * log_q).exp()
            return (q_power * (b * (log_q - log_p) - 1) + p_power).sum(dim=-1) / b**2
        if a + b == 0:
            scaled_ratio = a * (log_p - log_q)
            return (scaled_ratio.exp() - scaled_ratio - 1).sum(dim=-1) / a**2
        cross = torch.add(a * log_p, log_q, alpha=b).exp().sum(dim=-1)
        of_p = ((a + b) * log_p).exp().sum(dim=-1)
        of_q = ((a + b) * log_q).exp().sum(dim=-1)
        return -(cross - a / (a + b) * of_p - b / (a + b) * of_q) / (a * b)

    return divergence


# ---- hard labels, and hybrids of them with forward KL


def kl_div(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Forward KL in the fewest operations that PyTorch offers for it."""
    log_q = F.log_softmax(student.float(), dim=-1)
    log_p = F.log_softmax(teacher.float(), dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student.float(), labels)


def cross_entropy_to_argmax(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student.float(), teacher.argmax(dim=-1))


def hybrid(
    soft_weight: SoftWeight, *, hard_weight: float | None = None, has_risk: bool = False
) -> EagerLoss:
    """hard_weight: None is 1 - soft_weight."""

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        z = student.float()
        log_q, log_p = F.log_softmax(z, dim=-1), F.log_softmax(teacher.float(), dim=-1)
        p = log_p.exp()
        soft = (p * (log_p - log_q)).sum(dim=-1)
        hard = F.nll_loss(log_q, labels, reduction="none")
        weight = soft_weight(log_q, log_p, p, labels)
        if has_risk:
            hard = risk_guided(z, hard, labels)
        return (weight * soft + (1 - weight if hard_weight is None else hard_weight) * hard).mean()

    return loss


def risk_guided(z: Tensor, cross_entropy: Tensor, labels: Tensor, alpha: float = 0.1) -> Tensor:
    """[N], without discount.  Documents of DOCUMENT_TOKENS."""
    at_label = _at(z, labels)
    following = F.pad((at_label + cross_entropy)[1:], (0, 1))  # logsumexp of the next position
    place = torch.arange(1, len(labels) + 1, device=z.device)
    following = torch.where(place % DOCUMENT_TOKENS == 0, 0.0, following)
    return cross_entropy + alpha / 4 * (at_label - following).square()


def confidence_of_maximum(log_q: Tensor, log_p: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    return 1 - p.amax(dim=-1)


def confidence_of_label(log_q: Tensor, log_p: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    return 1 - _at(p, labels)


def entropy(log_q: Tensor, log_p: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    return -(p * log_p).sum(dim=-1) / math.log(p.shape[-1])


def tsallis(log_q: Tensor, log_p: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    gamma = 0.1
    return ((gamma * log_p).exp().sum(dim=-1) - 1) / (p.shape[-1] ** (1 - gamma) - 1)


def wsl(log_q: Tensor, log_p: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    """Half of 1 - exp(-log q_y / log p_y), probabilities not below 1e-8."""
    least = math.log(1e-8)
    student = _at(log_q.detach(), labels).clamp(min=least)
    teacher = _at(log_p, labels).clamp(min=least, max=-1e-8)
    return 0.5 * (1 - (-student / teacher).exp()).clamp(0, 1)


def _at(x: Tensor, labels: Tensor) -> Tensor:
    """x[i, labels[i]]"""
    return x.gather(-1, labels[:, None]).squeeze(-1)
