"""The configuration of a run: its sections, and what can be said about the settings alone.

Free of torch and Megatron.  `config_file` reads it from a file; `checks` compares it with the
machine, the models and the data.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.settings import Count, Section

__all__ = ["OptimizerConfig", "ParallelConfig", "TrainConfig", "WandbConfig"]


class StudentConfig(Section):
    """Where the student starts: from a model directory, or fresh from an architecture."""

    model_dir: Path | None = None
    architecture: ModelConfig | None = None
    layers_per_stage: list[Count] | None = None
    """Layers of each of the pipeline_parallel x virtual_pipeline stages; by default as even as can
    be, the first stages taking what is left over."""

    @model_validator(mode="after")
    def _one_start(self) -> StudentConfig:
        if (self.model_dir is None) == (self.architecture is None):
            raise ValueError("give either student.model_dir or student.architecture")
        return self

    def model(self) -> ModelConfig:
        """The student's architecture.  Raises OSError or ValueError (model_dir)."""
        return self.architecture or ModelConfig.read(typing.cast(Path, self.model_dir))


class TeacherConfig(Section):
    """The frozen teacher."""

    model_dir: Path
    layers_per_stage: list[Count] | None = None
    """As student.layers_per_stage."""
    microbatches_ahead: Count | None = None
    """With pipeline parallelism the teacher runs ahead of the student, forward only, and the last
    stage holds its hidden states; a step is cut into groups of so many microbatches to bound them,
    each of which fills and drains the pipeline.  Without it, all microbatches of a step."""
    offload: bool = False
    """The hidden states wait in the memory of the host."""


class DataConfig(Section):
    """Indexed datasets, named by the prefix of their .bin and .idx files."""

    train: list[str] = Field(min_length=1)
    weights: list[PositiveFloat] | None = None
    """Share of each training set; by default every token has the same share."""
    valid: dict[str, str] = Field(default={})
    """Held-out sets by name."""
    seq_length: Count
    end_of_document: NonNegativeInt | None = None
    """Token id after which another document begins, for objective.hard=risk_guided; without it a
    sequence is one document."""

    @model_validator(mode="after")
    def _weights_match(self) -> DataConfig:
        if self.weights is not None and len(self.weights) != len(self.train):
            raise ValueError(
                f"{len(self.train)} training sets need as many weights, got {len(self.weights)}"
            )
        return self


class ParallelConfig(Section):
    """Layout of the ranks; those that the other sizes leave over are data-parallel."""

    tensor_parallel: Count = 1
    sequence_parallel: bool = False
    pipeline_parallel: Count = 1
    virtual_pipeline: Count = 1
    """Pieces of the model on each pipeline rank: the interleaved schedule."""
    context_parallel: Count = 1
    """Ranks that share a sequence; each holds a piece from its front and one from its end."""
    expert_parallel: Count = 1
    """Ranks of the data-parallel ones that share the experts of a mixture."""
    distributed_optimizer: bool = False
    """Optimizer states are cut over the data-parallel ranks."""
    overlap: bool = False
    """Gradients are reduced during backward and, with distributed_optimizer, parameters gathered
    during forward."""
    timeout_minutes: PositiveFloat = 30.0
    """After so long a rank that waits for another one gives up; loading and saving must be
    faster."""

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that share one copy of the model."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def gathers_in_forward(self) -> bool:
        """Whether parameters are gathered when forward needs them."""
        return self.overlap and self.distributed_optimizer

    @property
    def stages(self) -> int:
        """Pieces into which a model is cut by layers."""
        return self.pipeline_parallel * self.virtual_pipeline

    @model_validator(mode="after")
    def _is_possible(self) -> ParallelConfig:
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ValueError("sequence_parallel needs tensor_parallel > 1: set it to false")
        if self.virtual_pipeline > 1 and self.pipeline_parallel == 1:
            raise ValueError("virtual_pipeline > 1 needs pipeline_parallel > 1: set it to 1")
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

    micro_batch_size: Count = 1
    global_batch_size: Count
    steps: Count
    seed: int = Field(default=1234, ge=0, lt=2**32)
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations; losses, gradient sums and optimizer states are fp32."""
    not_finite: Literal["stop", "skip"] = "stop"
    """What a step does whose loss or gradient is not finite: end the run, or change no weight and
    be counted as skipped."""
    gradient_in_forward: bool = False
    """Loss and gradient from one read of the logits where a row stays on the chip: hybrid_loss.
    The same but for rounding: the gradient is rounded to the logits' type before it is scaled."""


class CheckpointConfig(Section):
    """A run continues from the latest checkpoint in `dir`, if there is one."""

    dir: Path
    interval: Count = 1000
    """In steps; the last step and SIGTERM save as well."""
    keep: Count = 2


class WandbConfig(Section):
    """Weights & Biases, beside the other logs."""

    project: str
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline"] = "online"
    """offline: in logging.dir/wandb, for `wandb sync`"""


class LoggingConfig(Section):
    """JSON lines, TensorBoard events, the resolved configuration, Megatron's index of samples."""

    dir: Path
    interval: Count = 1
    """In steps."""
    tensorboard: bool = True
    wandb: WandbConfig | None = None


class EvaluationConfig(Section):
    """Held-out sets are evaluated before the first and after the last step, and in between:"""

    interval: Count | None = None
    """In steps."""
    batches: Count | None = None
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
        tokens = self.training.steps * self.training.global_batch_size * self.data.seq_length
        if tokens >= 2**63:  # Megatron's index of samples counts them with 64 bits
            raise ValueError(
                f"training.steps x training.global_batch_size x data.seq_length = {tokens} tokens "
                f"must be below {2**63}"
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
                "data": {"seq_length", "weights", "end_of_document"},
            },
        )
        settings["data"]["train"] = [Path(prefix).name for prefix in self.data.train]
        return {
            f"{section}.{key}": value
            for section, values in settings.items()
            for key, value in values.items()
        }
