"""Configurations that reach every entry of the tables of objectives, and each of its formulas."""

from __future__ import annotations

import itertools
from typing import Any, Literal

from bgkd_megatron.objectives import DIVERGENCES, WEIGHTINGS, ObjectiveConfig

WEIGHTING_CASES: dict[str, dict[str, Any]] = {
    "static": {"weighting": "static", "soft_weight": 0.3},
    "hard_only": {"weighting": "static", "soft_weight": 0.0},
    "independent": {"weighting": "static", "soft_weight": 1.3, "hard_weight": 0.4},
    "confidence": {"weighting": "confidence"},
    "reversed_confidence": {"weighting": "confidence", "reversed": True},
    "label_confidence": {"weighting": "confidence", "confidence": "label"},
    "shannon": {"weighting": "entropy"},
    "reversed_shannon": {"weighting": "entropy", "reversed": True},
    "tsallis": {"weighting": "entropy", "entropy": "tsallis", "tsallis_gamma": 0.1},
    "tsallis2": {"weighting": "entropy", "entropy": "tsallis", "tsallis_gamma": 2.0},
    "curriculum": {"weighting": "curriculum", "soft_weight": 0.8, "curriculum_fraction": 0.5},
    "reversed_curriculum": {"weighting": "curriculum", "soft_weight": 0.3, "reversed": True},
    "wsl": {"weighting": "wsl", "soft_weight": 0.7},
    "reversed_wsl": {"weighting": "wsl", "soft_weight": 1.4, "reversed": True},
    "scaled": {"weighting": "entropy", "soft_scale": 8.0, "entropy_regularizer": 0.1},
}
"""Settings of ObjectiveConfig by name."""

# An entry without a line above is tested with the defaults, never left out.
_named = {settings["weighting"] for settings in WEIGHTING_CASES.values()}
WEIGHTING_CASES |= {name: {"weighting": name} for name in WEIGHTINGS if name not in _named}

SOFT_CASES: dict[str, dict[str, Any]] = {
    "forward_kl": {"soft": "forward_kl"},
    "reverse_kl": {"soft": "reverse_kl"},
    "soft_forward_kl": {"soft": "forward_kl", "temperature": 2.0},
    "soft_reverse_kl": {"soft": "reverse_kl", "temperature": 0.5},
    "falling_temperature": {"soft": "forward_kl", "temperature": 4.0, "temperature_end": 1.0},
    "alpha_beta": {"soft": "alpha_beta", "alpha": 0.6, "beta": 0.7},
    "alpha_beta_limit": {"soft": "alpha_beta", "alpha": 0.5, "beta": 0.0},
    "adaptive_kl": {"soft": "adaptive_kl"},
    "adaptive_kl_detached": {"soft": "adaptive_kl", "adaptive_mu": 2.0, "adaptive_detach": True},
    "jensen_shannon": {"soft": "jensen_shannon"},
    "skew_forward_kl": {"soft": "skew_forward_kl"},
    "skew_cross_term": {"soft": "skew_forward_kl", "mixture": 0.3, "skew_cross_term": True},
    "skew_reverse_kl": {"soft": "skew_reverse_kl", "mixture": 0.2},
    "total_variation": {"soft": "total_variation"},
}
"""Settings of ObjectiveConfig by name."""

_named = {settings["soft"] for settings in SOFT_CASES.values()}
SOFT_CASES |= {name: {"soft": name} for name in DIVERGENCES if name not in _named}

_KLS_BY_EXPONENTS: list[dict[str, Any]] = [
    {"soft": "alpha_beta", "alpha": alpha, "beta": 1.0 - alpha} for alpha in (0.0, 1.0)
]
_HARD_LABELS: tuple[Literal["data", "teacher_argmax"], ...] = ("data", "teacher_argmax")
ONE_SWEEP = [
    ObjectiveConfig(hard_label=hard_label, **soft, **weighting)
    for (soft, weighting), hard_label in zip(
        itertools.product([*SOFT_CASES.values(), *_KLS_BY_EXPONENTS], WEIGHTING_CASES.values()),
        itertools.cycle(_HARD_LABELS),
        strict=False,
    )
    if ObjectiveConfig(**soft).fdivergence is None
]
"""Every weighting with every soft term that needs no second sweep."""
