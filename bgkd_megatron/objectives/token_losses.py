"""What an objective returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["TokenLosses"]


class TokenLosses(NamedTuple):
    """Losses of N tokens: each Tensor [N], float32, nats, 0 on rows that are not valid."""

    loss: Tensor
    """soft_weight * soft + hard_weight * hard - entropy_regularizer * H(q)"""
    hard: Tensor
    """-log q(label), with its risk if that is asked for"""
    soft: Tensor
    """divergence of teacher and student; 0 when the objective has no soft term"""
    soft_weight: Tensor
    """w_s, with the objective's soft_scale; no gradient"""
    hard_weight: Tensor
    """w_h, no gradient"""
