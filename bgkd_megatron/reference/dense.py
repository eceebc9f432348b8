"""Rows that count, and sums over a whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["given", "kl", "mean", "pick", "scatter", "valid_rows"]


def valid_rows(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Indices of the rows that count; the others are never read, so they may hold NaN."""
    if labels is None:
        return torch.arange(logits.shape[0], device=logits.device)
    return (labels != ignore_index).nonzero().squeeze(-1)


def scatter(values: Tensor, rows: Tensor, num_tokens: int) -> Tensor:
    """[N] with `values` in `rows` and 0 elsewhere."""
    return values.new_zeros(num_tokens).index_copy(0, rows, values)


def given(tensor: Tensor | None, name: str) -> Tensor:
    """`tensor`; ValueError where it is None."""
    if tensor is None:
        raise ValueError(f"{name} are needed for the features or the objective, got None")
    return tensor


def pick(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits[i, tokens[i]], [N]."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1)


def mean(p: Tensor, x: Tensor) -> Tensor:
    """sum_v p_v x_v.

    A term with p_v = 0 is 0 whatever x_v is, so it is selected before the product: 0 * inf is NaN,
    in backward too.
    """
    return (p * torch.where(p > 0, x, 0.0)).sum(dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) by its definition."""
    p = log_p.exp()
    return mean(p, torch.where(p > 0, log_p, 0.0) - torch.where(p > 0, log_q, 0.0))
