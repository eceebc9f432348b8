"""Objectives by name: settings of ObjectiveConfig that may still be changed one by one.

Without a prefix: the methods of arXiv 2605.26246 as the paper states them.  "release_*": what the
paper's public reference release trains under its `--phi_type *`, "release_div_*" what its `--div *`
adds as the soft term.  docs/objectives.md says what remains different: one denominator for both
terms.  Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["PRESETS", "release"]

_RELEASE_RISK = {"hard": "risk_guided", "risk_alpha": 0.05, "risk_gamma": 0.9999}
_TSALLIS = {"weighting": "entropy", "entropy": "tsallis", "tsallis_gamma": 0.1}

_PAPER: dict[str, dict[str, Any]] = {
    "static": {"weighting": "static"},
    "confidence": {"weighting": "confidence"},
    "entropy": {"weighting": "entropy"},
    "curriculum": {"weighting": "curriculum"},
    "risk_guided": {"weighting": "static", "hard": "risk_guided", "risk_alpha": 0.1},
}

_RELEASE: dict[str, dict[str, Any]] = {
    "sft": {"weighting": "static"},
    "chi2": {"weighting": "static", **_RELEASE_RISK},
    "chi2_curriculum": {"weighting": "curriculum", **_RELEASE_RISK},
    "adap_sft": {"weighting": "confidence", "confidence": "label"},
    "reverse_adap_sft": {"weighting": "confidence", "confidence": "label", "reversed": True},
    "entropy_sft_distill": _TSALLIS,
    "entropy_sft_sft": {**_TSALLIS, "reversed": True},
    "curriculum_weight": {"weighting": "curriculum"},
    "reverse_curriculum_weight": {"weighting": "curriculum", "reversed": True},
    "wsl": {"weighting": "wsl"},
    "reverse_wsl": {"weighting": "wsl", "reversed": True},
    "temperature_schedule_high_to_low": {
        "weighting": "static",
        "temperature": 4.0,
        "temperature_end": 1.0,
    },
    "temperature_schedule_low_to_high": {
        "weighting": "static",
        "temperature": 1.0,
        "temperature_end": 4.0,
    },
    "soft_kd_entropy_reg": {"weighting": "static", "entropy_regularizer": 0.1},
    "random_label": {"weighting": "static", "hard_label": "random"},
}

_RELEASE_DIVERGENCES: dict[str, dict[str, Any]] = {
    "ab": {"soft": "alpha_beta", "alpha": 1.0, "beta": 0.0},
    "sfkl": {"soft": "skew_forward_kl", "mixture": 0.1, "skew_cross_term": True},
    "srkl": {"soft": "skew_reverse_kl", "mixture": 0.1},
    "jsd": {"soft": "jensen_shannon", "mixture": 0.1},
    "tv": {"soft": "total_variation"},
    "akl": {"soft": "adaptive_kl", "adaptive_mu": 0.5},
}

# These train alpha-beta whatever --div says, which is only logged; the schedules of the temperature
# train the forward KL.
_IGNORE_DIV = (
    "adap_sft",
    "reverse_adap_sft",
    "entropy_sft_distill",
    "entropy_sft_sft",
    "wsl",
    "reverse_wsl",
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        **_PAPER,
        **{f"release_{name}": settings for name, settings in _RELEASE.items()},
        **{f"release_div_{name}": settings for name, settings in _RELEASE_DIVERGENCES.items()},
    }
)
"""Name -> settings."""


def release(phi_type: str, div: str = "ab") -> dict[str, Any]:
    """Settings of ObjectiveConfig for the reference release's `--phi_type` with its `--div`.

    Those whose weights depend on the token ignore `div`, as there: their soft term is alpha-beta,
    of the schedules of the temperature the forward KL.  Raises ValueError for unknown names.
    """
    for name, known in ((phi_type, _RELEASE), (div, _RELEASE_DIVERGENCES)):
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
    if phi_type.startswith("temperature_schedule"):
        return dict(_RELEASE[phi_type])
    return {**_RELEASE[phi_type], **_RELEASE_DIVERGENCES["ab" if phi_type in _IGNORE_DIV else div]}
