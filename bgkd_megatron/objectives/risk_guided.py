"""The risk-guided hard term: cross-entropy, and a penalty on the log-risk of the next position.

With student logits z_i, V_i = logsumexp z_i, label logit l_i = z_i[y_i], and k_i the number of
earlier valid tokens of the same document:

    hard_i = gamma^k_i [ V_i - l_i + alpha/4 (l_i - gamma V_(i+1))^2 ]

V_(i+1) = 0 behind the last token of a document, and where the next position is not valid.  With
gamma < 1 the last valid token e of a document also has  alpha (1 - gamma)/4 gamma^k_e V_e^2.
Unlike every other loss here it changes when a constant is added to all logits of a position.

Source: arXiv 2605.26246, "risk-guided" (gamma = 1); chi-square occupancy matching, Cundy and Ermon
2023; the closed form is that of the reference release's per-sequence loss.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.statistics import VocabStats

__all__ = ["Sequences", "risk_guided"]

# 1 - gamma below which the reference release leaves the terminal term out.
_NO_DISCOUNT = 1e-6


class Sequences(Protocol):
    """How N tokens lie in sequences: `sequence_layout.SequenceLayout`."""

    def whole(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Each [N] as [b, s], with the tokens of all ranks that share the sequences."""

    def own(self, whole: Tensor) -> Tensor:
        """The N tokens of this rank from [b, s]."""

    def document_ends(self, num_tokens: int, device: torch.device) -> Tensor:
        """[N] bool: the next position belongs to another document."""


def risk_guided(
    stats: VocabStats, label_logprob: Tensor, sequences: Sequences, config: ObjectiveConfig
) -> Tensor:
    """hard_i, [N]; differentiable in V_i, l_i and, through the neighbours, V_(i+1).

    label_logprob: log q of the hard label, [N].
    """
    alpha, gamma = config.risk_alpha, config.risk_gamma
    lse = stats.student_lse
    ends = sequences.document_ends(lse.shape[0], lse.device)
    values, valid, ends_whole = sequences.whole(
        torch.where(stats.valid, lse, 0.0), stats.valid.to(lse.dtype), ends.to(lse.dtype)
    )
    # A position that is not valid has the value 0 already.
    following = torch.nn.functional.pad(values[:, 1:], (0, 1)) * (1.0 - ends_whole)
    rank, is_last = _ranks(valid.detach() > 0, ends_whole.detach() > 0)
    discount = torch.where(valid > 0, gamma ** rank.to(lse.dtype), 0.0)
    terminal = torch.zeros_like(values)
    if 1.0 - gamma >= _NO_DISCOUNT:
        factor = config.risk_terminal * alpha * (1.0 - gamma) / 4.0
        terminal = torch.where(is_last, factor * discount * values.square(), 0.0)
    log_risk = (lse + label_logprob) - gamma * sequences.own(following)
    hard = sequences.own(discount) * (alpha / 4.0 * log_risk.square() - label_logprob)
    return torch.where(stats.valid, hard + sequences.own(terminal), 0.0)


def _ranks(valid: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """From [b, s] bool: how many valid tokens of the same document come before each, [b, s] int64,
    and whether it is the last valid one, bool.  No host synchronization."""
    starts = torch.ones_like(ends)
    starts[:, 1:] = ends[:, :-1]
    document = starts.flatten().cumsum(0) - 1  # of every position, over the whole batch
    flat = valid.flatten().to(torch.int64)
    count = torch.zeros_like(flat).index_add_(0, document, flat)  # [documents], at most b s
    before_document = count.cumsum(0) - count
    rank = flat.cumsum(0) - flat - before_document[document]
    is_last = (flat > 0) & (rank == count[document] - 1)
    return rank.view_as(valid), is_last.view_as(valid)
