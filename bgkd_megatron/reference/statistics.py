"""The statistics, as they split over the shards of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron.reference.dense import given, mean, pick, scatter, valid_rows
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats

__all__ = ["vocab_stats"]


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
    rows = valid_rows(student_logits, labels, ignore_index)
    z = student_logits[rows, :vocab_size]
    q, student_lse = torch.softmax(z, dim=-1), z.logsumexp(dim=-1)
    statistics = {
        "student_lse": student_lse,
        "student_argmax": z.argmax(dim=-1),
        "student_entropy": student_lse - mean(q, z),
    }
    if Feature.LABEL in features:
        y = given(labels, "labels")[rows]
        statistics["student_label_logprob"] = pick(z, y) - student_lse
    if features.reads_teacher:
        t = given(teacher_logits, "teacher_logits").detach()[rows, :vocab_size]
        p, teacher_lse, a = torch.softmax(t, dim=-1), t.logsumexp(dim=-1), t.argmax(dim=-1)
        soft_q, soft_p = (torch.softmax(x / temperature, dim=-1) for x in (z, t))
        soft_student_lse, soft_teacher_lse = ((x / temperature).logsumexp(dim=-1) for x in (z, t))
        soft_gap = soft_teacher_lse - soft_student_lse
        statistics |= {
            "teacher_lse": teacher_lse,
            "teacher_argmax": a,
            "teacher_max_logprob": t.amax(dim=-1) - teacher_lse,
            "student_logprob_at_teacher_argmax": pick(z, a) - student_lse,
            "teacher_entropy": teacher_lse - mean(p, t),
            "forward_kl": mean(p, t - z) - teacher_lse + student_lse,
            "reverse_kl": mean(q, z - t) - student_lse + teacher_lse,
            "teacher_power_sum": (power_exponent * (t - teacher_lse[:, None])).exp().sum(dim=-1),
            "soft_forward_kl": mean(soft_p, t - z) / temperature - soft_gap,
            "soft_reverse_kl": mean(soft_q, z - t) / temperature + soft_gap,
        }
        if Feature.LABEL in features:
            statistics["teacher_label_logprob"] = pick(t, y) - teacher_lse
    valid = torch.zeros(num_tokens, dtype=torch.bool, device=z.device).index_fill(0, rows, True)
    return VocabStats(
        valid=valid,
        **{
            name: scatter(values, rows, num_tokens)
            for name, values in statistics.items()
            if FEATURE_OF.get(name, Feature(0)) in features
        },
    )
