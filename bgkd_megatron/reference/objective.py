"""The objectives by their definitions."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.reference.dense import given, kl, mean, pick, scatter, valid_rows

__all__ = ["hybrid_loss"]

_NOTHING = -1e4  # log 0, near enough for float64 and float32


def hybrid_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    config: ObjectiveConfig,
    *,
    vocab_size: int,
    progress: float = 0.0,
    ignore_index: int = -100,
    documents: Tensor | None = None,
) -> TokenLosses:
    """Losses of N tokens, differentiable in the student's logits.

    student_logits, teacher_logits: [N, at least vocab_size], floating; further columns are padding.
    labels: [N] int64, or None (every row is valid; needs hard_label="teacher_argmax"). Labels that
        are drawn must have been drawn.
    progress: part of the run that is done, in [0, 1].
    documents: [N] int64, for hard="risk_guided": which document each token belongs to; those of
        one document come in their order.
    Returns TokenLosses in the logits' dtype, 0 on rows with label == ignore_index.
    """
    rows = valid_rows(student_logits, labels, ignore_index)
    z = student_logits[rows, :vocab_size]
    t = None if teacher_logits is None else teacher_logits.detach()[rows, :vocab_size]
    log_q = torch.log_softmax(z, dim=-1)
    target = None if labels is None else labels[rows]
    soft, soft_weight = torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0])
    hard_weight = None if config.hard_weight is None else soft + config.hard_weight
    if config.has_soft_term:
        t = given(t, "teacher_logits")
        soft = _soft_term(z, t, config, progress)
        soft_weight, hard_weight = _weights(z, t, target, config, vocab_size, progress)
    if config.hard_label == "teacher_argmax":
        target = given(t, "teacher_logits").argmax(dim=-1)
    hard = -pick(log_q, given(target, "labels"))
    if config.hard == "risk_guided":
        hard = _risk_guided(z, hard, given(documents, "documents"), rows, config)
    hard_weight = 1 - soft_weight if hard_weight is None else hard_weight
    soft_weight = config.soft_scale * soft_weight
    loss = soft_weight * soft + hard_weight * hard
    loss = loss + config.entropy_regularizer * mean(log_q.exp(), log_q)
    losses = (loss, hard, soft, soft_weight, hard_weight)
    return TokenLosses(*(scatter(values, rows, student_logits.shape[0]) for values in losses))


def _soft_term(z: Tensor, t: Tensor, config: ObjectiveConfig, progress: float) -> Tensor:
    temperature = config.temperature
    if config.temperature_end is not None:
        temperature = (1 - progress) * temperature + progress * config.temperature_end
    # A token that both exclude is absent: without probability, and without a gradient.
    absent = (z == -math.inf) & (t == -math.inf)
    log_q, log_p = (
        torch.log_softmax(x / temperature, dim=-1).masked_fill(absent, _NOTHING) for x in (z, t)
    )
    match config.soft:
        case "forward_kl":
            return temperature**2 * kl(log_p, log_q)
        case "reverse_kl":
            return temperature**2 * kl(log_q, log_p)
        case "alpha_beta":
            return temperature**2 * _alpha_beta(log_p, log_q, config.alpha, config.beta, ~absent)
        case "adaptive_kl":
            entropy_q, entropy_p = -mean(log_q.exp(), log_q), -mean(log_p.exp(), log_p)
            weight = 1 / (1 + torch.exp(config.adaptive_mu * (entropy_p - entropy_q)))
            weight = weight.detach() if config.adaptive_detach else weight
            return weight * kl(log_p, log_q) + (1 - weight) * kl(log_q, log_p)
        case "jensen_shannon":
            lam = 0.5 if config.mixture is None else config.mixture
            log_m = _mixed(log_p, log_q, lam)
            return lam * kl(log_q, log_m) + (1 - lam) * kl(log_p, log_m)
        case "skew_forward_kl":
            lam = 0.1 if config.mixture is None else config.mixture
            log_m = _mixed(log_q, log_p, lam)
            return -mean(log_p.exp(), log_m) if config.skew_cross_term else kl(log_p, log_m)
        case "skew_reverse_kl":
            return kl(
                log_q, _mixed(log_p, log_q, 0.1 if config.mixture is None else config.mixture)
            )
        case "total_variation":
            return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2
        case other:
            assert_never(other)


def _mixed(log_x: Tensor, log_y: Tensor, lam: float) -> Tensor:
    """log((1 - lam) x + lam y)"""
    return torch.logaddexp(log_x + math.log1p(-lam), log_y + math.log(lam))


def _alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float, present: Tensor) -> Tensor:
    """Each branch by its own formula."""
    s, ratio = a + b, log_p - log_q

    def total(c: float, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        return ((c * x.where(present, 0.0)).exp() * factor * present).sum(dim=-1)

    if a == b == 0:
        return ratio.square().sum(dim=-1) / 2
    if b == 0:
        return (a * total(a, log_p, ratio) - total(a, log_p) + total(a, log_q)) / a**2
    if a == 0:
        return (b * total(b, log_q, -ratio) - total(b, log_q) + total(b, log_p)) / b**2
    if s == 0:
        return (total(a, ratio) - (1 + a * ratio).where(present, 0.0).sum(dim=-1)) / a**2
    cross = total(1.0, a * log_p + b * log_q)
    return -(cross - a / s * total(s, log_p) - b / s * total(s, log_q)) / (a * b)


def _weights(
    z: Tensor,
    t: Tensor,
    target: Tensor | None,
    config: ObjectiveConfig,
    vocab_size: int,
    progress: float,
) -> tuple[Tensor, Tensor | None]:
    """w_s, and w_h if it is not 1 - w_s."""
    log_p = torch.log_softmax(t, dim=-1)
    p, one = log_p.exp(), torch.ones_like(t[:, 0])
    match config.weighting:
        case "static":
            rest = None if config.hard_weight is None else config.hard_weight * one
            return config.soft_weight * one, rest
        case "curriculum":
            ramp = min(progress / config.curriculum_fraction, 1.0)
            start = 1.0 if config.reversed else 0.0
            return (start + ramp * (config.soft_weight - start)) * one, None
        case "wsl":
            log_q_y = pick(torch.log_softmax(z.detach(), dim=-1), given(target, "labels"))
            q_y, p_y = log_q_y.exp(), pick(p, given(target, "labels"))
            log_p_y = p_y.clamp(min=1e-8).log()
            log_p_y = torch.where(log_p_y.abs() < 1e-8, -1e-8, log_p_y)
            decay = torch.exp(-(q_y.clamp(min=1e-8).log() / log_p_y).clamp(-10, 10))
            omega = decay if config.reversed else 1 - decay
            return config.soft_weight * omega.clamp(0, 1), one
        case "confidence" if config.confidence == "label":
            weight = 1 - pick(p, given(target, "labels"))
        case "confidence":
            weight = 1 - p.amax(dim=-1)
        case "entropy" if config.entropy == "shannon":
            weight = mean(p, -log_p) / math.log(vocab_size)
        case "entropy":
            gamma = config.tsallis_gamma
            weight = (p.pow(gamma).sum(dim=-1) - 1) / (math.pow(vocab_size, 1 - gamma) - 1)
        case other:
            assert_never(other)
    return (1 - weight, weight) if config.reversed else (weight, None)


def _risk_guided(
    z: Tensor, cross_entropy: Tensor, documents: Tensor, rows: Tensor, config: ObjectiveConfig
) -> Tensor:
    """One document after the other, one token after the other. Positions that are not valid are
    not among z; the value behind one is taken as 0."""
    alpha, gamma = config.risk_alpha, config.risk_gamma
    values = z.logsumexp(dim=-1)
    hard = list(cross_entropy.unbind())
    place = {int(row): i for i, row in enumerate(rows)}
    for document in documents.unique().tolist():
        members = (documents == document).nonzero().squeeze(-1).tolist()
        rank = 0
        for row, following in zip(members, [*members[1:], None], strict=True):
            if row not in place:
                continue
            i, last = place[row], not any(r in place for r in members[members.index(row) + 1 :])
            next_value = values[place[following]] if following in place else 0.0
            risk = values[i] - cross_entropy[i] - gamma * next_value
            term = cross_entropy[i] + alpha / 4 * risk**2
            if last and gamma < 1:
                term = term + config.risk_terminal * alpha * (1 - gamma) / 4 * values[i] ** 2
            hard[i] = gamma**rank * term
            rank += 1
    return torch.stack(hard) if hard else cross_entropy
