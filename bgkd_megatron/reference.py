"""The oracle: the same mathematics in dense PyTorch on whole-vocabulary logits, with autograd.

Two independent routes to the same numbers, in any floating dtype (tests use float64):

* `hybrid_loss`: the objective by its definition, from log-softmax and sums over the vocabulary.
* `vocab_stats`: the statistics from log-sum-exp and means of logit differences, which is how they
  split over the shards of a vocabulary; what the kernels must reproduce.

Both need memory for several [N, V] tensors.  Use bgkd_megatron.vocab_stats to train.
Source: arXiv 2605.26246 (hybrid losses); Hinton et al. 2015 (temperature).
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats

__all__ = ["hybrid_loss", "vocab_stats"]


def hybrid_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    config: ObjectiveConfig,
    *,
    vocab_size: int,
    progress: float = 0.0,
    ignore_index: int = -100,
) -> TokenLosses:
    """Losses of N tokens, differentiable in the student's logits.

    student_logits, teacher_logits: [N, at least vocab_size], floating; further columns are padding.
    labels: [N] int64, or None (every row is valid; needs hard_label="teacher_argmax").
    progress: part of the run that is done, in [0, 1].
    Returns TokenLosses in the logits' dtype, 0 on rows with label == ignore_index.
    """
    rows = _valid_rows(student_logits, labels, ignore_index)
    z = student_logits[rows, :vocab_size]
    t = None if teacher_logits is None else teacher_logits.detach()[rows, :vocab_size]
    soft, soft_weight = torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0])
    if config.has_soft_term:
        t = _given(t, "teacher_logits")
        log_q = torch.log_softmax(z / config.temperature, dim=-1)
        log_p = torch.log_softmax(t / config.temperature, dim=-1)
        soft = config.temperature**2 * _divergence(log_p, log_q, config)
        soft_weight = _soft_weight(t, config, vocab_size, progress)
    if config.hard_label == "data":
        target = _given(labels, "labels")[rows]
    else:
        target = _given(t, "teacher_logits").argmax(dim=-1)
    hard = -torch.log_softmax(z, dim=-1).gather(-1, target[:, None]).squeeze(-1)
    losses = (soft_weight * soft + (1 - soft_weight) * hard, hard, soft, soft_weight)
    return TokenLosses(*(_scatter(values, rows, student_logits.shape[0]) for values in losses))


def _divergence(log_p: Tensor, log_q: Tensor, config: ObjectiveConfig) -> Tensor:
    match config.soft:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case other:
            assert_never(other)


def _soft_weight(t: Tensor, config: ObjectiveConfig, vocab_size: int, progress: float) -> Tensor:
    p = torch.softmax(t, dim=-1)
    match config.weighting:
        case "static":
            return torch.full_like(p[:, 0], config.soft_weight)
        case "confidence":
            return 1 - p.amax(dim=-1)
        case "entropy" if config.entropy == "shannon":
            return _mean(p, -torch.log_softmax(t, dim=-1)) / math.log(vocab_size)
        case "entropy":
            gamma = config.tsallis_gamma
            return (p.pow(gamma).sum(dim=-1) - 1) / (math.pow(vocab_size, 1 - gamma) - 1)
        case "curriculum":
            ramp = min(progress / config.curriculum_fraction, 1.0)
            return torch.full_like(p[:, 0], config.soft_weight * ramp)
        case other:
            assert_never(other)


def vocab_stats(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    vocab_size: int,
    features: Feature,
    temperature: float = 1.0,
    power_exponent: float = 1.0,
    ignore_index: int = -100,
) -> VocabStats:
    """All statistics of N tokens, differentiable in the student's logits.

    Arguments and conventions as bgkd_megatron.vocab_stats.vocab_stats, but with the whole
    vocabulary in the columns [N, at least vocab_size], of any floating dtype, which is kept.
    Raises ValueError when a feature's input is missing.
    """
    num_tokens = student_logits.shape[0]
    rows = _valid_rows(student_logits, labels, ignore_index)
    z = student_logits[rows, :vocab_size]
    q, student_lse = torch.softmax(z, dim=-1), z.logsumexp(dim=-1)
    statistics = {
        "student_lse": student_lse,
        "student_argmax": z.argmax(dim=-1),
        "student_entropy": student_lse - _mean(q, z),
    }
    if Feature.LABEL in features:
        y = _given(labels, "labels")[rows]
        statistics["student_label_logprob"] = _pick(z, y) - student_lse
    if features.reads_teacher:
        t = _given(teacher_logits, "teacher_logits").detach()[rows, :vocab_size]
        p, teacher_lse, a = torch.softmax(t, dim=-1), t.logsumexp(dim=-1), t.argmax(dim=-1)
        soft_q, soft_p = (torch.softmax(x / temperature, dim=-1) for x in (z, t))
        soft_student_lse, soft_teacher_lse = ((x / temperature).logsumexp(dim=-1) for x in (z, t))
        soft_gap = soft_teacher_lse - soft_student_lse
        statistics |= {
            "teacher_lse": teacher_lse,
            "teacher_argmax": a,
            "teacher_max_logprob": t.amax(dim=-1) - teacher_lse,
            "student_logprob_at_teacher_argmax": _pick(z, a) - student_lse,
            "teacher_entropy": teacher_lse - _mean(p, t),
            "forward_kl": _mean(p, t - z) - teacher_lse + student_lse,
            "reverse_kl": _mean(q, z - t) - student_lse + teacher_lse,
            "teacher_power_sum": (power_exponent * (t - teacher_lse[:, None])).exp().sum(dim=-1),
            "soft_forward_kl": _mean(soft_p, t - z) / temperature - soft_gap,
            "soft_reverse_kl": _mean(soft_q, z - t) / temperature + soft_gap,
        }
        if Feature.LABEL in features:
            statistics["teacher_label_logprob"] = _pick(t, y) - teacher_lse
    valid = torch.zeros(num_tokens, dtype=torch.bool, device=z.device).index_fill(0, rows, True)
    return VocabStats(
        valid=valid,
        **{
            name: _scatter(values, rows, num_tokens)
            for name, values in statistics.items()
            if FEATURE_OF.get(name, Feature(0)) in features
        },
    )


def _valid_rows(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Indices of the rows that count; the others are never read, so they may hold NaN."""
    if labels is None:
        return torch.arange(logits.shape[0], device=logits.device)
    return (labels != ignore_index).nonzero().squeeze(-1)


def _scatter(values: Tensor, rows: Tensor, num_tokens: int) -> Tensor:
    """[N] with `values` in `rows` and 0 elsewhere."""
    return values.new_zeros(num_tokens).index_copy(0, rows, values)


def _given(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{name} are needed for the features or the objective, got None")
    return tensor


def _pick(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits[i, tokens[i]], [N]."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1)


def _mean(p: Tensor, x: Tensor) -> Tensor:
    """sum_v p_v x_v.

    A term with p_v = 0 is 0 whatever x_v is, so it is selected before the product: 0 * inf is NaN,
    in backward too.
    """
    return (p * torch.where(p > 0, x, 0.0)).sum(dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) by its definition."""
    p = log_p.exp()
    return _mean(p, torch.where(p > 0, log_p, 0.0) - torch.where(p > 0, log_q, 0.0))
