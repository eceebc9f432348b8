"""Configurations that reach every entry of the tables of objectives, and each of its formulas."""

from __future__ import annotations

from typing import Any

from bgkd_megatron.objectives import WEIGHTINGS

WEIGHTING_CASES: dict[str, dict[str, Any]] = {
    "static": {"weighting": "static", "soft_weight": 0.3},
    "hard_only": {"weighting": "static", "soft_weight": 0.0},
    "confidence": {"weighting": "confidence"},
    "shannon": {"weighting": "entropy"},
    "tsallis": {"weighting": "entropy", "entropy": "tsallis", "tsallis_gamma": 0.1},
    "tsallis2": {"weighting": "entropy", "entropy": "tsallis", "tsallis_gamma": 2.0},
    "curriculum": {"weighting": "curriculum", "soft_weight": 0.8, "curriculum_fraction": 0.5},
}
"""Settings of ObjectiveConfig by name."""

# An entry without a line above is tested with the defaults, never left out.
_named = {settings["weighting"] for settings in WEIGHTING_CASES.values()}
WEIGHTING_CASES |= {name: {"weighting": name} for name in WEIGHTINGS if name not in _named}
