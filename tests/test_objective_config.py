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
        ("soft", "js", "'forward_kl' or 'reverse_kl'"),
        ("hard_label", "sample", "'data' or 'teacher_argmax'"),
        ("weighting", "wsl", "'static', 'confidence', 'entropy' or 'curriculum'"),
        ("entropy", "renyi", "'shannon' or 'tsallis'"),
        ("soft_weight", 1.5, "less than or equal to 1"),
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


def test_config_is_frozen_and_documented() -> None:
    config = ObjectiveConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.soft = "reverse_kl"
    assert all(field.description for field in ObjectiveConfig.model_fields.values())
    assert ObjectiveConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("field", "table"), [("soft", DIVERGENCES), ("weighting", WEIGHTINGS)])
def test_every_entry_of_a_table_can_be_chosen(field: str, table: Any) -> None:
    assert set(get_args(ObjectiveConfig.model_fields[field].annotation)) == set(table)
