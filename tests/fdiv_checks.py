"""Comparison of the divergences of the second sweep with dense formulas in float64."""

from __future__ import annotations

import math

import torch
from operator_checks import FP32, Precision, assert_near
from torch import Tensor
from vocab_inputs import ALL_FEATURES, contract, gradient_noise, upstream

from bgkd_megatron import reference
from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard

DIVERGENCES = [
    FDivergence(FKind.JENSEN_SHANNON, 0.5),
    FDivergence(FKind.JENSEN_SHANNON, 0.1),
    FDivergence(FKind.SKEW_FORWARD, 0.1),
    FDivergence(FKind.SKEW_REVERSE, 0.1),
    FDivergence(FKind.TOTAL_VARIATION),
    FDivergence(FKind.ALPHA_BETA, alpha=0.6, beta=0.7),  # more of them: test_alpha_beta.py
]
TEMPERATURE, POWER_EXPONENT = 2.0, 0.3


def name_of(divergence: FDivergence) -> str:
    d = divergence
    return "-".join(str(x) for x in (d.kind.name.lower(), d.lam, d.alpha, d.beta) if x is not None)


def alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """[N]: (q^s - p^s) / (a s) - (p^a q^b - p^s) / (a b), (x^c - y^c) / c -> log(x / y) for c -> 0;
    the other form where a = 0."""
    if a == b == 0:
        return (log_p - log_q).square().sum(dim=-1) / 2
    if a == 0:  # exchanging p with q exchanges a with b
        return alpha_beta(log_q, log_p, b, a)

    def gap(c: float, x: Tensor, y: Tensor) -> Tensor:
        return (x - y) if c == 0 else ((c * x).exp() - (c * y).exp()) / c

    return (gap(a + b, log_q, log_p) - (a * log_p).exp() * gap(b, log_q, log_p)).sum(dim=-1) / a


def dense_fdiv(z: Tensor, t: Tensor, divergence: FDivergence) -> Tensor:
    """[N] from logits [N, V] of the real vocabulary."""
    # A token with a logit of -inf is absent: it has no probability, and no gradient.
    log_q, log_p = (torch.log_softmax(x, dim=-1).masked_fill(x == -math.inf, -1e6) for x in (z, t))
    q, p = log_q.exp(), log_p.exp()
    if divergence.kind == FKind.TOTAL_VARIATION:
        return (q - p).abs().sum(dim=-1) / 2
    if divergence.alpha is not None and divergence.beta is not None:
        return alpha_beta(log_p, log_q, divergence.alpha, divergence.beta)
    assert divergence.lam is not None
    of_q = 1 - divergence.lam if divergence.kind == FKind.SKEW_FORWARD else divergence.lam
    log_m = torch.logaddexp(log_q + math.log(of_q), log_p + math.log1p(-of_q))
    forward, reverse = (p * (log_p - log_m)).sum(dim=-1), (q * (log_q - log_m)).sum(dim=-1)
    match divergence.kind:
        case FKind.SKEW_FORWARD:
            return forward
        case FKind.SKEW_REVERSE:
            return reverse
    return divergence.lam * reverse + (1 - divergence.lam) * forward


def dense(
    z: Tensor,
    t: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    divergence: FDivergence,
    features: Feature,
) -> tuple[VocabStats, Tensor]:
    """Statistics and divergence in float64; a row that is not valid has 0."""
    z, t = z.double(), t.double()
    stats = reference.vocab_stats(
        z,
        t,
        labels,
        vocab_size=vocab_size,
        features=features,
        temperature=TEMPERATURE,
        power_exponent=POWER_EXPONENT,
    )
    rows = stats.valid
    value = z.new_zeros(len(z))
    value[rows] = dense_fdiv(z[rows, :vocab_size], t[rows, :vocab_size], divergence)
    return stats, value


def assert_equals_dense(
    z: Tensor,
    t: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    divergence: FDivergence,
    features: Feature = ALL_FEATURES,
    *,
    precision: Precision = FP32,
    statistics: float = 0.0,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """Values, and the gradient through the divergence and, times `statistics`, through all
    statistics at once; returns divergence and gradient."""
    dtype, grad_atol, grad_rtol = precision
    leaf, leaf64 = z.detach().requires_grad_(), z.detach().double().requires_grad_()
    stats, value = vocab_fdiv(
        leaf * 1.0,
        t,
        labels,
        shard=VocabShard.even(vocab_size, z.shape[1]),
        divergence=divergence,
        features=features,
        temperature=TEMPERATURE,
        power_exponent=POWER_EXPONENT,
        inplace_backward=inplace_backward,
    )
    stats64, value64 = dense(leaf64, t, labels, vocab_size, divergence, features)
    assert value.dtype == torch.float32
    assert_near(value.double(), value64, name_of(divergence))

    weights = {name: statistics * w for name, w in upstream(stats64, seed=5).items()}
    of_value = torch.linspace(-1, 2.1, len(z), dtype=torch.float64)
    loss, loss64 = (value * of_value.float()).sum(), (value64 * of_value).sum()
    if statistics:
        loss, loss64 = loss + contract(stats, weights), loss64 + contract(stats64, weights)
    (gradient,) = torch.autograd.grad(loss, leaf)
    (gradient64,) = torch.autograd.grad(loss64, leaf64)
    assert gradient.dtype == dtype
    assert gradient[:, vocab_size:].eq(0).all()
    rows = stats.valid
    noise = torch.zeros_like(gradient64)
    noise[rows, :vocab_size] = gradient_noise(
        z[rows, :vocab_size], t[rows, :vocab_size], TEMPERATURE if statistics else 1.0
    )
    allowed = noise + grad_atol + grad_rtol * gradient64.abs()
    error = (gradient.double() - gradient64).abs()
    worst = (error - allowed).nan_to_num(math.inf).amax() if error.numel() else 0.0
    assert worst <= 0, f"gradient is off by {error.amax():.3g}, {worst:.3g} more than allowed"
    return value.detach(), gradient
