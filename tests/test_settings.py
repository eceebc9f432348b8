"""What every section of a configuration refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import PositiveFloat, PositiveInt, ValidationError

from bgkd_megatron.settings import Count, Section, explain, mistakes


class Inner(Section):
    number: float = 1.0


class Example(Section):
    number: float = 1.0
    """A number."""
    count: PositiveInt | None = None
    size: Count | None = None
    pair: tuple[PositiveFloat, PositiveFloat] = (0.9, 0.95)
    shares: list[PositiveFloat] | None = None
    switch: bool = False
    name: str = "-"
    file: Path = Path("-")
    names: list[str] | None = None
    by_name: dict[str, str] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", True),
        ("number", False),
        ("count", True),
        ("size", True),
        ("pair", [True, 0.9]),
        ("pair", (0.9, False)),
        ("shares", [0.5, True]),
    ],
)
def test_a_boolean_is_no_number(field: str, value: Any) -> None:
    message = r"must be a number, got the boolean (true|false)"
    with pytest.raises(ValidationError, match=message) as error:
        Example.model_validate({field: value})
    assert error.value.errors()[0]["loc"] == (field,)


def test_a_boolean_is_refused_in_inner_sections_too() -> None:
    with pytest.raises(ValidationError, match="must be a number") as error:
        Example.model_validate({"inner": {"number": True}})
    assert error.value.errors()[0]["loc"] == ("inner", "number")


def test_a_boolean_is_judged_by_the_type_elsewhere() -> None:
    assert Example(switch=True).switch
    with pytest.raises(ValidationError, match="valid string"):
        Example.model_validate({"name": True})


def test_what_yaml_gives_for_a_number_is_taken() -> None:
    """Integers for a float; "1e-4" is a string in YAML 1.1."""
    example = Example.model_validate(
        {"number": "1e-4", "count": 3, "pair": [1, "5e-1"], "shares": None}
    )
    assert example.number == 1e-4
    assert example.count == 3
    assert example.pair == (1.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"numbre": 1.0}, "Extra inputs are not permitted"),
        ({"name": ""}, "at least 1 character"),
        ({"names": ["a", ""]}, "at least 1 character"),
        ({"by_name": {"a": ""}}, "at least 1 character"),
        ({"by_name": {"": "a"}}, "at least 1 character"),
        ({"file": ""}, "not a valid path"),
        ({"file": "a\0"}, r"null character, got 'a\\x00'"),
        ({"names": ["a", "b\0"]}, "must not hold a null character"),
        ({"by_name": {"a": "b\0"}}, "must not hold a null character"),
        ({"by_name": {"a\0": "b"}}, "must not hold a null character"),
        ({"file": "a\ud800"}, "not a valid path"),
        ({"names": ["a\ud800"]}, "valid string"),
        ({"by_name": {"a\ud800": "b"}}, "valid string"),
        ({"size": 0}, "greater than 0"),
        ({"size": 2**31}, "less than 2147483648"),
        ({"number": math.nan}, "finite number"),
        ({"pair": [math.inf, 1.0]}, "finite number"),
        ({"inner": {"number": math.inf}}, "finite number"),
    ],
)
def test_sections_refuse(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Example.model_validate(settings)


def test_sections_are_frozen_and_documented() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().number = 2.0
    assert Example.model_fields["number"].description == "A number."


class Required(Section):
    number: float
    inner: Inner = Inner()


def test_a_line_for_each_mistake() -> None:
    with pytest.raises(ValidationError) as caught:
        Required.model_validate({"inner": {"number": "x" * 100, "numbre": 1}})
    expected = [
        "number: is required",
        "inner.number: Input should be a valid number, unable to parse string as a number, "
        f"got '{'x' * 39}",
        "inner.numbre: unknown key",
    ]
    assert mistakes(caught.value) == expected
    assert explain(caught.value) == "; ".join(expected)
    assert mistakes(caught.value, lambda key: f", not {key}")[-1] == (
        "inner.numbre: unknown key, not inner.numbre"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"number": true}', "number: must be a number, got the boolean true"),
        ('{"number": 1', "Invalid JSON: EOF while parsing an object at line 1 column 12"),
    ],
)
def test_mistakes_that_say_themselves_what_came(text: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Required.model_validate_json(text)
    assert explain(caught.value) == expected


def test_other_errors_are_explained_on_one_line_too() -> None:
    assert explain(ValueError("two\n  lines")) == "two lines"
