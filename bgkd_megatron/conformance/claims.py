"""What a loss can claim to compute, by definition.

Every loss here is a sum over the vocabulary of one term per token id, so a claim returns the terms
[N, V]: whole rows are summed for what is right, a shard's columns for what some mistakes give.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CLAIMS", "Claim", "top_k", "top_k_and_rest"]

Terms = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_q of the student [N, V], log_p of the teacher [N, V], terms of the cross entropy [N, V])
-> terms [N, V]; float64, differentiable."""


@dataclass(frozen=True)
class Claim:
    """What a loss says it computes."""

    name: str
    formula: str
    terms: Terms
    needs_teacher: bool = True
    needs_labels: bool = False


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Terms of KL(p || q), with 0 log 0 = 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def _mixture(log_a: Tensor, log_b: Tensor, weight_b: float) -> Tensor:
    return torch.logaddexp(log_a + math.log1p(-weight_b), log_b + math.log(weight_b))


def _softened_kl(log_p: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    p, q = ((x / temperature).log_softmax(-1) for x in (log_p, log_q))
    return temperature**2 * _kl(p, q)


def _jensen_shannon(log_q: Tensor, log_p: Tensor, _: Tensor) -> Tensor:
    log_m = _mixture(log_p, log_q, 0.5)
    return 0.5 * (_kl(log_p, log_m) + _kl(log_q, log_m))


def _hybrid_entropy(log_q: Tensor, log_p: Tensor, hard: Tensor) -> Tensor:
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    weight = (entropy / math.log(log_p.shape[-1])).detach()
    return weight * _kl(log_p, log_q) + (1 - weight) * hard


def top_k(k: int) -> Claim:
    """Forward KL between both distributions renormalised over the teacher's k likeliest tokens."""

    def terms(log_q: Tensor, log_p: Tensor, _: Tensor) -> Tensor:
        chosen = torch.zeros_like(log_p).scatter(-1, log_p.topk(k).indices, 1.0).bool()
        p = torch.where(chosen, log_p, -torch.inf).log_softmax(-1)
        q = torch.where(chosen, log_q, -torch.inf).log_softmax(-1)
        # Twice where: 0 * (inf - inf) would put NaN into the gradient.
        difference = torch.where(chosen, p, 0.0) - torch.where(chosen, q, 0.0)
        return p.exp() * difference

    return Claim(
        f"forward_kl_top_{k}", f"KL(p‖q), both renormalised over the teacher's top {k}", terms
    )


def top_k_and_rest(k: int) -> Claim:
    """Forward KL between the teacher's k likeliest tokens and one more, which has all the rest."""

    def terms(log_q: Tensor, log_p: Tensor, _: Tensor) -> Tensor:
        chosen = torch.zeros_like(log_p).scatter(-1, log_p.topk(k).indices, 1.0).bool()
        p, q = (torch.where(chosen, -torch.inf, x).logsumexp(-1) for x in (log_p, log_q))
        rest = torch.zeros_like(log_p)
        rest[:, 0] = p.exp() * (p - q)
        return torch.where(chosen, _kl(log_p, log_q), 0.0) + rest

    return Claim(f"forward_kl_top_{k}_and_rest", f"KL of the teacher's top {k} and the rest", terms)


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim("cross_entropy", "-log q(label)", lambda q, p, hard: hard, False, True),
        Claim("forward_kl", "KL(p‖q)", lambda q, p, hard: _kl(p, q)),
        Claim("reverse_kl", "KL(q‖p)", lambda q, p, hard: _kl(q, p)),
        Claim(
            "forward_kl_temperature_2",
            "4 KL(softmax(t/2)‖softmax(z/2))",
            lambda q, p, hard: _softened_kl(p, q, 2.0),
        ),
        Claim("jensen_shannon", "½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2", _jensen_shannon),
        Claim(
            "skew_forward_kl",
            "KL(p‖m), m = p/10 + 9q/10",
            lambda q, p, hard: _kl(p, _mixture(q, p, 0.1)),
        ),
        Claim(
            "skew_reverse_kl",
            "KL(q‖m), m = 9p/10 + q/10",
            lambda q, p, hard: _kl(q, _mixture(p, q, 0.1)),
        ),
        Claim("total_variation", "½ Σ|p - q|", lambda q, p, hard: 0.5 * (p.exp() - q.exp()).abs()),
        Claim(
            "hybrid",
            "½ KL(p‖q) - ½ log q(label)",
            lambda q, p, hard: 0.5 * _kl(p, q) + 0.5 * hard,
            needs_labels=True,
        ),
        Claim(
            "hybrid_entropy",
            "w KL(p‖q) - (1 - w) log q(label), w = H(p)/log V",
            _hybrid_entropy,
            needs_labels=True,
        ),
    )
}
"""By name.  p is the teacher's distribution, q the student's; natural logarithms."""
