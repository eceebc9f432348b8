"""What ObjectiveConfig refuses, and that it documents itself."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from bgkd_megatron.objectives import DIVERGENCES, WEIGHTINGS, ObjectiveConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("soft", "js", "'forward_kl', .* 'skew_reverse_kl' or 'total_variation'"),
        ("hard", "chi2", "'cross_entropy' or 'risk_guided'"),
        ("hard_label", "sample", "'data', 'teacher_argmax', 'teacher_sample' or 'random'"),
        ("weighting", "linear", "'static', 'confidence', 'entropy', 'curriculum' or 'wsl'"),
        ("confidence", "token", "'maximum' or 'label'"),
        ("entropy", "renyi", "'shannon' or 'tsallis'"),
        ("hard_weight", -0.1, "greater than or equal to 0"),
        ("mixture", 0.0, "greater than 0"),
        ("mixture", 1.0, "less than 1"),
        ("adaptive_mu", 0.0, "greater than 0"),
        ("soft_scale", 0.0, "greater than 0"),
        ("risk_alpha", 0.0, "greater than 0"),
        ("risk_gamma", 0.0, "greater than 0"),
        ("risk_gamma", 1.01, "less than or equal to 1"),
        ("risk_terminal", -1.0, "greater than or equal to 0"),
        ("entropy_regularizer", -0.1, "greater than or equal to 0"),
        ("temperature_end", 101.0, "less than or equal to 100"),
        ("temperature_end", 0.0, r"greater than or equal to 0\.01"),
        ("soft_weight", -0.1, "greater than or equal to 0"),
        ("soft_weight", math.nan, "finite number"),
        ("temperature", 0.0, r"greater than or equal to 0\.01"),
        ("temperature", 0.009, r"greater than or equal to 0\.01"),
        ("temperature", 101.0, "less than or equal to 100"),
        ("soft_weight", True, "must be a number, got the boolean true"),
        ("temperature", math.inf, "finite number"),
        ("temperature", math.nan, "finite number"),
        ("curriculum_fraction", 0.0, "greater than 0"),
        ("curriculum_fraction", 1.1, "less than or equal to 1"),
        ("tsallis_gamma", 1e-300, "greater than or equal to 0.001"),
        ("tsallis_gamma", 101.0, "less than or equal to 100"),
        ("tsallis_gamma", 1.0, "must differ from 1 .* entropy='shannon'"),
        ("tsallis_gamma", 1.0001, "must differ from 1 .* got 1.0001"),
        ("lambda", 0.5, "Extra inputs are not permitted"),
    ],
)
def test_config_refuses(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        ObjectiveConfig(**{field: value})
    assert error.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"weighting": "static", "soft_weight": 1.5},
            r"soft_weight must be at most 1, got 1\.5: .* give hard_weight",
        ),
        (
            {"weighting": "curriculum", "soft_weight": 1.5},
            "soft_weight must be at most 1",
        ),
        (
            {"soft": "jensen_shannon", "temperature": 2.0},
            "temperature and temperature_end belong to .* got soft=jensen_shannon: set temperature",
        ),
        (
            {"soft": "alpha_beta", "alpha": 0.5, "beta": 0.5, "temperature_end": 2.0},
            "temperature and temperature_end belong to .* got soft=alpha_beta",
        ),
        ({"soft": "adaptive_kl", "temperature": 0.5}, "got soft=adaptive_kl"),
        (
            {"weighting": "entropy", "hard_weight": 0.5},
            "hard_weight belongs to weighting=static, got hard_weight=0.5 with weighting=entropy",
        ),
        ({"weighting": "static", "reversed": True}, "a static weighting has no reverse"),
        (
            {"soft": "alpha_beta", "alpha": 11.0},
            "alpha, beta and alpha \\+ beta must each be 0 or of a size between 0.01 and 10.0",
        ),
        ({"soft": "alpha_beta", "alpha": 0.5, "beta": -0.495}, "must each be 0 or of a size"),
        ({"soft": "alpha_beta", "beta": 0.001}, "must each be 0 or of a size"),
        ({"soft": "jensen_shannon", "mixture": 1e-9}, r"between 0 and 1, by at least 2\^-24"),
        (
            {"soft_weight": 0.3},
            "belongs to weighting=static or curriculum or wsl, .*=entropy",
        ),
        ({"mixture": 0.3}, "mixture belongs to soft=jensen_shannon or .* with soft=forward_kl"),
        ({"risk_gamma": 0.9}, "risk_gamma belongs to hard=risk_guided"),
        ({"tsallis_gamma": 2.0}, "tsallis_gamma belongs to entropy=tsallis"),
        ({"preset": "release_chi2", "hard": "cross_entropy", "risk_gamma": 0.9}, "risk_gamma belo"),
        ({"preset": "paper"}, "preset must be one of static, .*release_sft.*, got 'paper'"),
        ({"preset": ["static", 3]}, "preset must be one of .* got 3"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"weighting": "confidence", "soft_weight": 0.5, "entropy": "shannon", "risk_gamma": 1.0},
        {"preset": "release_chi2", "hard": "cross_entropy"},
        {"preset": ["release_div_jsd", "release_div_tv"]},
        {"weighting": "wsl", "soft_weight": 1.5},
        {"weighting": "static", "soft_weight": 1.5, "hard_weight": 0.0},
        {"soft": "alpha_beta", "temperature": 2.0},
        {"soft": "alpha_beta", "alpha": 0.0, "beta": 1.0, "temperature_end": 2.0},
        {"soft": "alpha_beta", "alpha": 0.5, "beta": -0.5},
        {"soft": "alpha_beta", "alpha": 0.0, "beta": 0.0},
    ],
    ids=str,
)
def test_settings_that_go_together(settings: dict[str, Any]) -> None:
    ObjectiveConfig(**settings)


def test_config_is_frozen_and_documented() -> None:
    config = ObjectiveConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.soft = "reverse_kl"
    assert all(field.description for field in ObjectiveConfig.model_fields.values())
    assert ObjectiveConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("field", "table"), [("soft", DIVERGENCES), ("weighting", WEIGHTINGS)])
def test_every_entry_of_a_table_can_be_chosen(field: str, table: Any) -> None:
    assert set(get_args(ObjectiveConfig.model_fields[field].annotation)) == set(table)
