"""The configuration of a run: one YAML file plus ``section.key=value`` overrides.

Free of torch and Megatron.  This module holds what can be said about the settings alone;
`checks` compares them with the machine, the models and the data.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.settings import Section

__all__ = ["TrainConfig", "load_config"]


class StudentConfig(Section):
    """Where the student starts: from a model directory, or fresh from an architecture."""

    model_dir: Path | None = None
    architecture: ModelConfig | None = None

    @model_validator(mode="after")
    def _one_start(self) -> StudentConfig:
        if (self.model_dir is None) == (self.architecture is None):
            raise ValueError("give either student.model_dir or student.architecture")
        return self

    def model(self) -> ModelConfig:
        """The student's architecture.  Raises FileNotFoundError or ValueError (model_dir)."""
        return self.architecture or ModelConfig.read(typing.cast(Path, self.model_dir))


class TeacherConfig(Section):
    """The frozen teacher."""

    model_dir: Path


class DataConfig(Section):
    """Indexed datasets, named by the prefix of their .bin and .idx files."""

    train: list[str] = Field(min_length=1)
    weights: list[PositiveFloat] | None = None
    """Share of each training set; by default every token has the same share."""
    valid: dict[str, str] = Field(default={})
    """Held-out sets by name."""
    seq_length: PositiveInt

    @model_validator(mode="after")
    def _weights_match(self) -> DataConfig:
        if self.weights is not None and len(self.weights) != len(self.train):
            raise ValueError(
                f"{len(self.train)} training sets need as many weights, got {len(self.weights)}"
            )
        return self


class ParallelConfig(Section):
    """Layout of the ranks; those that tensor parallelism leaves over are data-parallel."""

    tensor_parallel: PositiveInt = 1
    sequence_parallel: bool = False

    @model_validator(mode="after")
    def _needs_tensor_parallel(self) -> ParallelConfig:
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ValueError("sequence_parallel needs tensor_parallel > 1: set it to false")
        return self


class OptimizerConfig(Section):
    """AdamW: linear warm-up, then decay to min_lr at the last step."""

    lr: PositiveFloat
    min_lr: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.1
    betas: tuple[PositiveFloat, PositiveFloat] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    clip_grad: PositiveFloat = 1.0
    """Largest norm of the gradient of all parameters."""

    @model_validator(mode="after")
    def _lr_above_min(self) -> OptimizerConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) must not be above lr ({self.lr})")
        if max(self.betas) >= 1.0:
            raise ValueError(f"betas must be below 1, got {self.betas}")
        return self


class TrainingConfig(Section):
    """Batch sizes in sequences."""

    micro_batch_size: PositiveInt = 1
    global_batch_size: PositiveInt
    steps: PositiveInt
    seed: int = Field(default=1234, ge=0, lt=2**32)
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations; losses, gradient sums and optimizer states are fp32."""


class CheckpointConfig(Section):
    """A run continues from the latest checkpoint in `dir`, if there is one."""

    dir: Path
    interval: PositiveInt = 1000
    """In steps; the last step and SIGTERM save as well."""
    keep: PositiveInt = 2


class LoggingConfig(Section):
    """JSON lines, TensorBoard events, the resolved configuration, Megatron's index of samples."""

    dir: Path
    interval: PositiveInt = 1
    """In steps."""
    tensorboard: bool = True


class EvaluationConfig(Section):
    """Held-out sets are evaluated before the first and after the last step, and in between:"""

    interval: PositiveInt | None = None
    """In steps."""
    batches: PositiveInt | None = None
    """At most this many global batches of each set."""


class TrainConfig(Section):
    """Everything that defines a run."""

    student: StudentConfig
    teacher: TeacherConfig | None = None
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _across_sections(self) -> TrainConfig:
        if self.objective.needs_teacher and self.teacher is None:
            raise ValueError(
                "the objective needs a teacher: set teacher.model_dir, or train on the data alone "
                "with objective.weighting=static objective.soft_weight=0"
            )
        if self.optimizer.warmup_steps >= self.training.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be below "
                f"training.steps ({self.training.steps})"
            )
        return self

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide what each step computes, as dotted keys; a restart keeps them.

        The layout of the ranks, the micro-batch size, paths, intervals and logs are free; of the
        training sets only the names count, so that they may be moved.
        """
        settings = self.model_dump(
            mode="json",
            include={
                "objective": True,
                "optimizer": True,
                "training": {"global_batch_size", "steps", "seed", "precision"},
                "data": {"seq_length", "weights"},
            },
        )
        settings["data"]["train"] = [Path(prefix).name for prefix in self.data.train]
        return {
            f"{section}.{key}": value
            for section, values in settings.items()
            for key, value in values.items()
        }


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in the YAML file `path` with ``section.key=value`` applied on top.

    Values are parsed as YAML.  Raises ConfigError with one message for all mistakes.
    """
    try:
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold sections (student:, data:, ...), got {settings!r}")
    for override in overrides:
        settings = _overridden(settings, override)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        mistakes = "\n".join(f"  {_explain(e)}" for e in error.errors())
        raise ConfigError(f"{path} cannot be used:\n{mistakes}") from None


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
        value = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    settings = section = dict(settings)
    for part in sections:
        inner = section.get(part) or {}  # absent or null in the file
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {part} is not a section")
        section[part] = inner = dict(inner)
        section = inner
    section[name] = value
    return settings


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(key)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "is required"
    elif error["type"] != "value_error":
        message = f"{message}, got {error['input']!r}"
    return f"{key}: {message}" if key else message


def _suggestion(key: str) -> str:
    known = list(_keys(TrainConfig))
    name = key.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == name]  # right key, wrong section
    near += difflib.get_close_matches(key, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys below `section`."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        models = [k for k in options if isinstance(k, type) and issubclass(k, BaseModel)]
        yield prefix + name
        for model in models:
            yield from _keys(model, f"{prefix}{name}.")
