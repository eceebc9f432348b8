"""Distillation objectives: plain PyTorch on per-token statistics."""

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.divergence import DIVERGENCES, Divergence
from bgkd_megatron.objectives.hybrid import HybridObjective
from bgkd_megatron.objectives.metrics import bridges_and_gardens, token_metrics
from bgkd_megatron.objectives.presets import PRESETS, release
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.objectives.weighting import WEIGHTINGS, Weighting

__all__ = [
    "DIVERGENCES",
    "PRESETS",
    "WEIGHTINGS",
    "Divergence",
    "HybridObjective",
    "ObjectiveConfig",
    "TokenLosses",
    "Weighting",
    "bridges_and_gardens",
    "release",
    "token_metrics",
]
