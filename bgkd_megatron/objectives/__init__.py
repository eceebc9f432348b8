"""Distillation objectives: plain PyTorch on per-token statistics."""

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.divergence import DIVERGENCES, Divergence
from bgkd_megatron.objectives.hybrid import HybridObjective
from bgkd_megatron.objectives.metrics import token_metrics
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.objectives.weighting import WEIGHTINGS, Weighting

__all__ = [
    "DIVERGENCES",
    "WEIGHTINGS",
    "Divergence",
    "HybridObjective",
    "ObjectiveConfig",
    "TokenLosses",
    "Weighting",
    "token_metrics",
]
