"""The base of every section of a configuration file.  Free of torch and Megatron."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["Section"]


class Section(BaseModel):
    """Settings; refused: unknown ones, infinity and NaN, booleans for numbers, empty strings.

    Frozen; the string below a field describes it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _meaningful(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1; its strict mode would refuse YAML's "1e-4", a string."""
        if value == "":  # a path would be the current folder
            raise ValueError("must not be empty")
        annotation = cls.model_fields[typing.cast(str, info.field_name)].annotation
        numeric = _mentions(annotation, int) or _mentions(annotation, float)
        if numeric and not _mentions(annotation, bool):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, bool):
                    raise ValueError(f"must be a number, got the boolean {str(item).lower()}")
        return value


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether `annotation` is `kind` or has it inside, as `list[int] | None` has int."""
    return annotation is kind or any(_mentions(part, kind) for part in typing.get_args(annotation))
