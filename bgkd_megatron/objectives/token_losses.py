"""What an objective returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["TokenLosses"]


class TokenLosses(NamedTuple):
    """Losses of N tokens: each Tensor [N], float32, nats, 0 on rows that are not valid."""

    loss: Tensor
    """soft_weight * soft + (1 - soft_weight) * hard"""
    hard: Tensor
    """-log q(label)"""
    soft: Tensor
    """divergence of teacher and student; 0 when the objective has no soft term"""
    soft_weight: Tensor
    """w, no gradient"""
