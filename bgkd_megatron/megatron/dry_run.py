"""What a run would do, without doing it: layout, parameters and memory of the ranks, data,
schedule.  Free of torch and Megatron, so that it runs anywhere."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bgkd_megatron.megatron.checks import check_run
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.sizes import rank_sizes

__all__ = ["dry_run"]

_GIB = 2**30


def dry_run(config: TrainConfig, world_size: int, console: Console) -> None:
    """Print the plan of `config` on world_size ranks.  Raises ConfigError where it cannot run."""
    check_run(config, world_size, {})
    student = config.student.model()
    teacher = None if config.teacher is None else ModelConfig.read(config.teacher.model_dir)
    layout, training = config.parallel, config.training
    replicas = world_size // layout.ranks_per_replica
    microbatches = training.global_batch_size // (training.micro_batch_size * replicas)
    tokens = training.global_batch_size * config.data.seq_length
    lines = {
        "ranks": f"{world_size} = tensor {layout.tensor_parallel} x pipeline "
        f"{layout.pipeline_parallel} x context {layout.context_parallel} x data {replicas}; "
        f"pieces of a model on a rank {layout.virtual_pipeline}; experts shared by "
        f"{layout.expert_parallel}",
        "step": f"{training.global_batch_size} sequences of {config.data.seq_length} tokens = "
        f"{tokens} tokens, in {microbatches} microbatches of {training.micro_batch_size} on each "
        "data-parallel rank",
        "schedule": f"{training.steps} steps = {training.steps * tokens} tokens; learning rate "
        f"{config.optimizer.lr:g} after {config.optimizer.warmup_steps} steps, then "
        f"{config.optimizer.decay} to {config.optimizer.min_lr:g}; a checkpoint every "
        f"{config.checkpoint.interval} steps, the last {config.checkpoint.keep} are kept",
        "objective": str(config.objective.model_dump(exclude_defaults=True) or "the default"),
        "data": ", ".join(_dataset(prefix) for prefix in config.data.train),
        "held out": ", ".join(f"{n}: {_dataset(p)}" for n, p in config.data.valid.items()) or "-",
    }
    for name, text in lines.items():
        console.print(f"{name:10}{text}", markup=False, highlight=False)
    table = Table(
        title="layers and parameters of student and teacher on a rank; GiB, without activations"
    )
    parts = ("weights", "gradients", "optimizer", "logits", "teacher states", "total")
    for column in ("pipeline rank", "layers", "student", "teacher", *parts):
        table.add_column(column, justify="right")
    for rank in rank_sizes(config, student, teacher, world_size):
        memory = (rank.weights, rank.gradients, rank.optimizer, rank.logits, rank.teacher_states)
        table.add_row(
            str(rank.pipeline_rank),
            f"{rank.student_layers} + {rank.teacher_layers}",
            *(f"{n / 1e6:.1f} M" for n in (rank.student_parameters, rank.teacher_parameters)),
            *(f"{size / _GIB:.2f}" for size in (*memory, rank.total)),
        )
    console.print(table)


def _dataset(prefix: str) -> str:
    size = Path(f"{prefix}.bin").stat().st_size
    return f"{prefix} ({size / 1e6:.1f} MB)"
