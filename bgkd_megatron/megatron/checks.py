"""Refuses a run that cannot work, before any model is built: layout, models, tokenizers, files."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.model_config import TOKENIZER_DIR, WEIGHTS_DIR, ModelConfig
from bgkd_megatron.megatron.stages import stage_layers

__all__ = ["check_run"]


def check_run(config: TrainConfig, world_size: int, folders: Mapping[str, Path]) -> None:
    """Raise ConfigError with everything that stands in the way of `config` on world_size ranks.

    folders: those that will be written to, by the name of their setting; they are made.
    """
    problems = list(_problems(config, world_size))
    problems += [] if problems else _folder_problems(folders)  # last: it makes them
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(f"  {p}" for p in problems))


def _problems(config: TrainConfig, world_size: int) -> Iterator[str]:
    yield from _layout_problems(config, world_size)
    models: dict[str, ModelConfig] = {}
    for role, model_dir in _model_dirs(config).items():
        try:
            models[role] = ModelConfig.read(model_dir)
            weights = model_dir / WEIGHTS_DIR
            if not (weights / "metadata.json").is_file():
                yield f"{role}.model_dir: {weights} is not a complete checkpoint"
        except (OSError, ValueError) as error:
            yield f"{role}.model_dir: {error}"
    if config.student.architecture is not None:
        models["student"] = config.student.architecture
    for role, model in models.items():
        yield from _model_problems(role, model, config)
    if len(models) == 2:
        yield from _pair_problems(models["student"], models["teacher"], _model_dirs(config))
    for prefix in [*config.data.train, *config.data.valid.values()]:
        try:
            yield from _dataset_problems(prefix, models.get("student"))
        except OSError as error:
            yield f"{prefix} cannot be read ({error})"
    if config.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        yield "logging.tensorboard: pip install tensorboard, or set it to false"
    if config.logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        yield "logging.wandb: pip install wandb, or leave it out"


def _folder_problems(folders: Mapping[str, Path]) -> Iterator[str]:
    for name, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0" * 4096)
        except OSError as error:
            yield f"{name}: cannot write to {folder} ({error.strerror})"


def _model_dirs(config: TrainConfig) -> dict[str, Path]:
    dirs = {}
    if config.student.model_dir is not None:
        dirs["student"] = config.student.model_dir
    if config.teacher is not None:
        dirs["teacher"] = config.teacher.model_dir
    return dirs


def _layout_problems(config: TrainConfig, world_size: int) -> Iterator[str]:
    layout, training = config.parallel, config.training
    if world_size % layout.ranks_per_replica:
        yield (
            "parallel.tensor_parallel x pipeline_parallel x context_parallel = "
            f"{layout.tensor_parallel} x {layout.pipeline_parallel} x {layout.context_parallel} "
            f"does not divide the {world_size} processes: start a multiple of "
            f"{layout.ranks_per_replica} (torchrun --nproc-per-node)"
        )
        return
    data_parallel = world_size // layout.ranks_per_replica
    batch = training.micro_batch_size * data_parallel
    if training.global_batch_size % batch:
        yield (
            f"training.global_batch_size={training.global_batch_size} must be a multiple of "
            f"micro_batch_size x data-parallel ranks = {training.micro_batch_size} x "
            f"{data_parallel} = {batch}"
        )
    elif layout.virtual_pipeline > 1:
        yield from _interleaved_problems(config, training.global_batch_size // batch)
    sequence_ranks = data_parallel * layout.context_parallel
    if sequence_ranks % layout.expert_parallel:
        yield (
            f"parallel.expert_parallel={layout.expert_parallel} does not divide the "
            f"{sequence_ranks} ranks of data and context parallelism: choose a divisor"
        )
    yield from _sequence_problems(config)


def _interleaved_problems(config: TrainConfig, microbatches: int) -> Iterator[str]:
    """Megatron's interleaved schedule takes a whole number of microbatches for each stage."""
    stages = config.parallel.pipeline_parallel
    counts = {f"the {microbatches} microbatches of a step on each rank": microbatches}
    if config.teacher is not None and config.teacher.microbatches_ahead is not None:
        ahead = config.teacher.microbatches_ahead
        counts[f"teacher.microbatches_ahead={ahead}"] = ahead
    for name, count in counts.items():
        if count % stages:
            yield (
                f"parallel.virtual_pipeline={config.parallel.virtual_pipeline}: {name} must be a "
                f"multiple of parallel.pipeline_parallel={stages}"
            )


def _sequence_problems(config: TrainConfig) -> Iterator[str]:
    layout, length = config.parallel, config.data.seq_length
    context = layout.context_parallel
    if context > 1 and length % (2 * context):
        yield (
            f"parallel.context_parallel cuts data.seq_length={length} into {2 * context} parts: "
            f"make it a multiple of {2 * context}"
        )
    elif layout.sequence_parallel and (length // context) % layout.tensor_parallel:
        parts = layout.tensor_parallel * context
        yield (
            f"parallel.sequence_parallel cuts data.seq_length={length} into {parts} parts: make it "
            f"a multiple of {parts}"
        )


def _model_problems(role: str, model: ModelConfig, config: TrainConfig) -> Iterator[str]:
    tensor_parallel = config.parallel.tensor_parallel
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        value = getattr(model, name)
        if value % tensor_parallel:
            yield (
                f"parallel.tensor_parallel={tensor_parallel} does not divide the {role}'s "
                f"{name}={value}: choose a divisor of {value}"
            )
    if config.data.seq_length > model.max_position_embeddings:
        yield (
            f"data.seq_length={config.data.seq_length} is above the {role}'s "
            f"max_position_embeddings={model.max_position_embeddings}: lower it"
        )
    section = config.student if role == "student" else config.teacher
    assert section is not None
    try:
        stage_layers(model.num_layers, config.parallel.stages, section.layers_per_stage)
    except ValueError as error:
        yield f"{role}: {error}"


def _pair_problems(
    student: ModelConfig, teacher: ModelConfig, dirs: dict[str, Path]
) -> Iterator[str]:
    if student.vocab_size != teacher.vocab_size:
        yield (
            f"the student has vocab_size={student.vocab_size} and the teacher "
            f"{teacher.vocab_size}: both must use the same vocabulary"
        )
    if len(dirs) == 2:
        try:
            difference = _tokenizer_difference(dirs["student"], dirs["teacher"])
        except (OSError, LookupError, RecursionError, TypeError, ValueError) as error:
            yield f"a tokenizer.json of student or teacher cannot be read ({error!r})"
            return
        if difference:
            yield (
                f"the tokenizers of student and teacher differ ({difference}): distillation "
                "compares token by token, so both models must share one tokenizer"
            )


def _tokenizer_difference(student_dir: Path, teacher_dir: Path) -> str:
    """What two vocabularies disagree on; empty if on nothing, or if one of them is not known."""
    student, teacher = (
        _tokens(d / TOKENIZER_DIR / "tokenizer.json") for d in (student_dir, teacher_dir)
    )
    if student is None or teacher is None or student == teacher:
        return ""
    token = min(t for t in student.keys() | teacher.keys() if student.get(t) != teacher.get(t))
    return f"token {token!r} is {student.get(token)} in one and {teacher.get(token)} in the other"


def _tokens(path: Path) -> dict[str, int] | None:
    """Token to id, of a Hugging Face tokenizer.json; None when there is no such file."""
    if not path.is_file():
        return None
    tokenizer: Any = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: [token, score], the position is the id
        vocab = {token: index for index, (token, _score) in enumerate(vocab)}
    return {**vocab, **{t["content"]: t["id"] for t in tokenizer.get("added_tokens", [])}}


def _dataset_problems(prefix: str, student: ModelConfig | None) -> Iterator[str]:
    for suffix in (".bin", ".idx"):
        path = Path(prefix + suffix)
        if not path.is_file() or path.stat().st_size == 0:
            yield (
                f"{path} does not exist or is empty: make the dataset with "
                f"python -m bgkd_megatron.data.prepare --output {prefix}"
            )
            return
    path = Path(prefix + ".json")
    if not path.is_file():
        return
    try:
        summary = json.loads(path.read_bytes())
        vocab_size, loss_tokens = int(summary["vocab_size"]), int(summary["loss_tokens"])
    except (LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        yield f"{path} cannot be read ({error!r}): prepare the dataset again"
        return
    if student is not None and vocab_size > student.vocab_size:
        yield (
            f"{prefix} was made with a tokenizer of {vocab_size} tokens, the student has "
            f"{student.vocab_size}: prepare it with the student's tokenizer"
        )
    if loss_tokens == 0:
        yield f"no token of {prefix} is a target: check what was prepared"
