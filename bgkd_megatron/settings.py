"""The base of every section of a configuration file, and what is said about mistakes in one.

Free of torch and Megatron.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

__all__ = ["Count", "Section", "explain", "mistakes"]

Count = Annotated[int, Field(gt=0, lt=2**31)]
"""A positive number; Megatron's index of samples, for one, counts with 32 bits."""


class Section(BaseModel):
    """Settings; refused: unknown ones, infinity and NaN, booleans for numbers, strings that are
    empty or hold a null character.

    Frozen; the string below a field describes it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_min_length=1,  # an empty path would be the current folder
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1; its strict mode would refuse YAML's "1e-4", a string."""
        annotation = cls.model_fields[typing.cast(str, info.field_name)].annotation
        numeric = _mentions(annotation, int) or _mentions(annotation, float)
        if numeric and not _mentions(annotation, bool):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, bool):
                    raise ValueError(f"must be a number, got the boolean {str(item).lower()}")
        return value

    @field_validator("*")
    @classmethod
    def _no_null_character(cls, value: Any) -> Any:
        """What YAML makes of "\\0"; no function of the system takes such a path."""
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            if isinstance(part, str | Path) and "\0" in str(part):
                raise ValueError(f"must not hold a null character, got {str(part)!r:.40}")
        return value


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether `annotation` is `kind` or has it inside, as `list[int] | None` has int."""
    return annotation is kind or any(_mentions(part, kind) for part in typing.get_args(annotation))


def explain(error: Exception) -> str:
    """What is wrong, on one line; pydantic's own text has several for each mistake."""
    if isinstance(error, ValidationError):
        return "; ".join(mistakes(error))
    return " ".join(str(error).split())


def mistakes(error: ValidationError, hint: Callable[[str], str] = lambda key: "") -> list[str]:
    """A line for each mistake: the key, what is wrong, what came.

    hint: what more there is to say about an unknown key.
    """
    return [_line(mistake, hint) for mistake in error.errors()]


def _line(mistake: ErrorDetails, hint: Callable[[str], str]) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    match mistake["type"]:
        case "missing":
            message = "is required"
        case "extra_forbidden":
            message = f"unknown key{hint(key)}"
        case "value_error" | "json_invalid":  # these say themselves what came
            message = mistake["msg"].removeprefix("Value error, ")
        case _:
            message = f"{mistake['msg']}, got {mistake['input']!r:.40}"
    return f"{key}: {message}" if key else message
