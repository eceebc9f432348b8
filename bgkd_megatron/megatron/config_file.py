"""The configuration file of a run: YAML, plus ``section.key=value`` overrides.

Free of torch and Megatron.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.settings import Section, explain, mistakes

__all__ = ["load_config"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in the YAML file `path` with ``section.key=value`` applied on top.

    Values are parsed as YAML.  Raises ConfigError with one message for all mistakes.
    """
    try:
        settings = _parsed(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold sections (student:, data:, ...), got {settings!r:.40}")
    for override in overrides:
        settings = _overridden(settings, override)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes(error, _suggestion))
        raise ConfigError(f"{path} cannot be used:\n{lines}") from None


def _parsed(text: str) -> Any:
    """What the YAML `text` means.  Raises ValueError with a message of one line."""
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except RecursionError as error:
        raise ValueError("brackets or blocks are nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem}{where}") from error
    except (yaml.YAMLError, AttributeError, LookupError, ValueError) as error:
        # The last three come from a number, date or tagged value that is none: 0x_, !!bool x.
        raise ValueError(explain(error)) from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML forbids it, PyYAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # not hashable: refused when the mapping is built
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node


def _overridden(settings: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of `settings` with one override applied.

    Sections are copied, not changed: an alias in the file gives two sections one dictionary.
    """
    key, equals, text = override.partition("=")
    *sections, name = key.split(".")
    if not equals or not all((*sections, name)):
        raise ConfigError(f"override {override!r} must look like section.key=value")
    try:
        value = _parsed(text)
    except ValueError as error:
        raise ConfigError(
            f"override {override!r:.80}: the value is not valid YAML: {error}"
        ) from error
    settings = section = dict(settings)
    for part in sections:
        inner = section.get(part) or {}  # absent or null in the file
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {part} is not a section")
        section[part] = inner = dict(inner)
        section = inner
    section[name] = value
    return settings


def _suggestion(key: str) -> str:
    known = list(_keys(TrainConfig))
    name = key.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == name]  # right key, wrong section
    near += difflib.get_close_matches(key, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """All dotted keys below `section`."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        models = [k for k in options if isinstance(k, type) and issubclass(k, Section)]
        yield prefix + name
        for model in models:
            yield from _keys(model, f"{prefix}{name}.")
