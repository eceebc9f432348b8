"""docs/objectives.md names every setting, every value and every preset."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from bgkd_megatron.objectives import ObjectiveConfig

PAGE = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text()
NAMED = set(re.findall(r"[a-z][a-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))


@pytest.mark.parametrize("name", ObjectiveConfig.model_fields)
def test_a_setting_is_there_with_its_values(name: str) -> None:
    assert name in NAMED
    annotation = ObjectiveConfig.model_fields[name].annotation
    if typing.get_origin(annotation) is typing.Literal:
        for value in typing.get_args(annotation):
            assert value in NAMED, value
