"""Every mistake in a configuration is refused before a model is built, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgkd_megatron.megatron import checkpoint_dir
from bgkd_megatron.megatron.checks import check_run
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.config_file import load_config
from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.model_config import ModelConfig

STUDENT = ModelConfig(
    num_layers=2,
    hidden_size=48,
    num_attention_heads=6,
    num_query_groups=3,
    ffn_hidden_size=96,
    vocab_size=300,
    max_position_embeddings=64,
)


def write_model(model_dir: Path, config: ModelConfig, tokens: dict[str, int]) -> None:
    (model_dir / "weights").mkdir(parents=True)
    (model_dir / "weights" / "metadata.json").write_text("{}")
    (model_dir / "tokenizer").mkdir()
    tokenizer = {"model": {"vocab": tokens}, "added_tokens": [{"content": "<end>", "id": 2}]}
    (model_dir / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config.write(model_dir)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A configuration without a mistake, for 6 processes; paths exist."""
    write_model(tmp_path / "student", STUDENT, {"a": 0, "b": 1})
    write_model(tmp_path / "teacher", STUDENT, {"a": 0, "b": 1})
    for suffix in (".bin", ".idx"):
        (tmp_path / f"data{suffix}").write_bytes(b"0")
    return {
        "student": {"model_dir": str(tmp_path / "student")},
        "teacher": {"model_dir": str(tmp_path / "teacher")},
        "data": {"train": [str(tmp_path / "data")], "seq_length": 32},
        "parallel": {"tensor_parallel": 3},
        "optimizer": {"lr": 1e-3},
        "training": {"global_batch_size": 4, "steps": 10},
        "checkpoint": {"dir": str(tmp_path / "checkpoints")},
        "logging": {"dir": str(tmp_path / "log")},
    }


def load(tmp_path: Path, settings: dict[str, Any], *overrides: str) -> TrainConfig:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return load_config(tmp_path / "run.yaml", overrides)


def check(config: TrainConfig, world_size: int) -> None:
    folders = {"checkpoint.dir": config.checkpoint.dir, "logging.dir": config.logging.dir}
    check_run(config, world_size, folders)


def message(tmp_path: Path, settings: dict[str, Any], *overrides: str, world_size: int = 6) -> str:
    with pytest.raises(ConfigError) as error:
        check(load(tmp_path, settings, *overrides), world_size)
    return str(error.value)


def test_no_mistake(tmp_path: Path, settings: dict[str, Any]) -> None:
    check(load(tmp_path, settings), world_size=6)


def test_overrides(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(
        tmp_path,
        settings,
        "optimizer.lr=3e-4",
        "objective.weighting=confidence",
        "data.valid.code=/x",
        "evaluation.batches=null",
        "training.precision=fp32",
        "optimizer.betas=[0.8, 0.9]",
    )
    assert config.optimizer.lr == 3e-4
    assert config.objective.weighting == "confidence"
    assert config.data.valid == {"code": "/x"}
    assert config.evaluation.batches is None
    assert config.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning=1", "optimizer.learning: unknown key"),
        ("optimizer.warmup_step=1", "did you mean optimizer.warmup_steps?"),
        ("training.lr=1", "training.lr: unknown key, did you mean optimizer.lr?"),
        ("objectiv.soft=forward_kl", "objectiv: unknown key, did you mean objective?"),
        ("training.steps=0", "training.steps: Input should be greater than 0, got 0"),
        ("training.precision=fp8", "'fp32' or 'bf16', got 'fp8'"),
        ("optimizer.lr=.nan", "finite number"),
        ("optimizer.lr=null", "optimizer.lr"),
        ("optimizer.min_lr=1", "min_lr (1.0) must not be above lr (0.001)"),
        ("optimizer.betas=[0.9, 1.0]", "betas must be below 1"),
        ("optimizer.warmup_steps=10", "warmup_steps (10) must be below training.steps (10)"),
        ("student.model_dir=null", "give either student.model_dir or student.architecture"),
        ("data.train=[]", "data.train: List should have at least 1 item"),
        ("data.weights=[1, 2]", "1 training sets need as many weights, got 2"),
        ("teacher=null", "the objective needs a teacher"),
        (".steps=1", "must look like section.key=value"),
        ("training.steps", "must look like section.key=value"),
        ("training.steps.more=1", "steps is not a section"),
        ("training.steps=[", "not valid YAML"),
        ("optimizer={lr: 1, lr: 2}", "the value is not valid YAML"),
        ("training.steps=true", "training.steps"),
        ("optimizer.lr=true", "optimizer.lr"),
        ("objective.soft_weight=true", "objective.soft_weight"),
        ("checkpoint.dir=''", "checkpoint.dir: Input is not a valid path"),
        ("student.architecture.layers=1", "architecture.layers: unknown key"),
    ],
)
def test_mistakes_in_settings(
    tmp_path: Path, settings: dict[str, Any], override: str, expected: str
) -> None:
    assert expected in message(tmp_path, settings, override)


def test_missing_sections(tmp_path: Path, settings: dict[str, Any]) -> None:
    del settings["teacher"], settings["optimizer"]
    text = message(tmp_path, settings)
    assert "optimizer: is required" in text
    settings["optimizer"] = {"lr": 1e-3}
    assert "set teacher.model_dir" in message(tmp_path, settings)
    hard_only = ("objective.weighting=static", "objective.soft_weight=0")
    check(load(tmp_path, settings, *hard_only), world_size=6)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="must hold sections"):
        load_config(tmp_path / "list.yaml")
    for content in (b"a: [", b"\xff\x00", b"a: 1\nb: {c: 1, c: 2}"):
        (tmp_path / "torn.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match="not valid YAML"):
            load_config(tmp_path / "torn.yaml")


def test_overrides_do_not_reach_an_alias(tmp_path: Path, settings: dict[str, Any]) -> None:
    """YAML gives an anchor and its aliases one dictionary."""
    settings["data"]["valid"] = shared = {"code": "/x"}
    settings["more"] = shared
    text = yaml.safe_dump(settings)
    assert "*id001" in text
    path = tmp_path / "aliases.yaml"
    path.write_text(text.replace("more: *id001", "<<: {evaluation: {batches: 3}}"))
    config = load_config(path, ["evaluation.batches=4", "data.valid.text=/y"])
    assert config.evaluation.batches == 4
    path.write_text(text)
    with pytest.raises(ConfigError, match="more: unknown key"):
        load_config(path, ["data.valid.text=/y"])


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        ((), 4, "tensor_parallel=3 does not divide the 4 processes"),
        (("parallel.tensor_parallel=2",), 2, "student's num_query_groups=3"),
        (("parallel.tensor_parallel=4",), 4, "teacher's num_attention_heads=6"),
        (("parallel.tensor_parallel=5",), 5, "student's ffn_hidden_size=96"),
        (("training.global_batch_size=3",), 6, "must be a multiple of micro_batch_size x data-"),
        (("training.micro_batch_size=3",), 6, "= 3 x 2 = 6"),
        (("parallel.sequence_parallel=true",), 3, "make it a multiple of 3"),
        (("data.seq_length=65",), 6, "above the student's max_position_embeddings=64"),
        (
            ("data.train=[/no/such]",),
            6,
            "/no/such.bin does not exist or is empty: make",
        ),
        (("data.valid.x=/no/such",), 6, "/no/such.bin does not exist"),
        (("student.model_dir=/no/such",), 6, "student.model_dir: /no/such/model.json"),
        (("teacher.model_dir=/no/such",), 6, "teacher.model_dir: /no/such/model.json"),
    ],
)
def test_impossible_runs(
    tmp_path: Path, settings: dict[str, Any], overrides: tuple, world_size: int, expected: str
) -> None:
    assert expected in message(tmp_path, settings, *overrides, world_size=world_size)


def test_all_problems_are_told_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    text = message(tmp_path, settings, "data.seq_length=65", "training.global_batch_size=3")
    assert "max_position_embeddings" in text
    assert "global_batch_size" in text


def test_models_that_do_not_fit(tmp_path: Path, settings: dict[str, Any]) -> None:
    other = STUDENT.model_copy(update={"vocab_size": 301})
    other.write(tmp_path / "teacher")
    assert "student has vocab_size=300 and the teacher 301" in message(tmp_path, settings)
    STUDENT.write(tmp_path / "teacher")
    (tmp_path / "teacher" / "weights" / "metadata.json").unlink()
    assert "not a complete checkpoint" in message(tmp_path, settings)


def test_tokenizers_that_differ(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "teacher" / "tokenizer" / "tokenizer.json"
    tokenizer = {"model": {"vocab": {"a": 1, "b": 0}}, "added_tokens": []}
    path.write_text(json.dumps(tokenizer))
    text = message(tmp_path, settings)
    assert "tokenizers of student and teacher differ" in text
    assert "token '<end>' is 2 in one and None in the other" in text
    # Unigram models list their tokens; here they are those of the student.
    tokenizer = {"model": {"vocab": [["a", 0.0], ["b", -1.0], ["<end>", 0.0]]}}
    path.write_text(json.dumps(tokenizer))
    check(load(tmp_path, settings), world_size=6)
    path.unlink()
    check(load(tmp_path, settings), world_size=6)


def test_dataset_of_another_tokenizer(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "data.json").write_text('{"vocab_size": 300, "loss_tokens": 1}')
    check(load(tmp_path, settings), world_size=6)
    (tmp_path / "data.json").write_text('{"vocab_size": 301, "loss_tokens": 1}')
    assert "made with a tokenizer of 301 tokens, the student has 300" in message(tmp_path, settings)
    (tmp_path / "data.json").write_text('{"vocab_size": 300, "loss_tokens": 0}')
    assert "no token of" in message(tmp_path, settings)
    (tmp_path / "data.json").write_text('{"vocab_size": 3')
    assert "prepare the dataset again" in message(tmp_path, settings)


@pytest.mark.parametrize("section", ["checkpoint", "logging"])
def test_folder_that_cannot_be_written(
    tmp_path: Path, settings: dict[str, Any], section: str
) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        text = message(tmp_path, settings, f"{section}.dir={tmp_path / folder}")
        assert f"{section}.dir: cannot write to {tmp_path / folder}" in text


def test_tensorboard_is_missing(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorboard" in message(tmp_path, settings)
    check(load(tmp_path, settings, "logging.tensorboard=false"), world_size=6)


def test_checkpoint_of_another_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(tmp_path, settings)
    root = config.checkpoint.dir
    assert checkpoint_dir.latest(root) is None
    checkpoint = checkpoint_dir.iteration_dir(root, 5)
    checkpoint.mkdir(parents=True)
    checkpoint_dir.Progress(
        iteration=5,
        consumed_samples=20,
        world_size=6,
        tensor_parallel=3,
        trajectory=config.trajectory(),
    ).write(checkpoint)
    checkpoint_dir.mark_latest(root, checkpoint)
    assert checkpoint_dir.latest(root) == checkpoint
    # The layout, paths and intervals may change; what a step computes may not.
    free = load(
        tmp_path,
        settings,
        "parallel.tensor_parallel=1",
        "checkpoint.interval=7",
        "training.micro_batch_size=1",
    )
    assert checkpoint_dir.read_progress(checkpoint, free).iteration == 5
    changed = load(tmp_path, settings, "training.steps=20", "data.seq_length=16")
    with pytest.raises(ConfigError, match=r"training\.steps was 10, now 20") as error:
        checkpoint_dir.read_progress(checkpoint, changed)
    assert "data.seq_length was 32, now 16" in str(error.value)
    progress = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps({**progress, "iteration": 4}))
    with pytest.raises(ConfigError, match=r"damaged \(it is of iteration 4\)"):
        checkpoint_dir.read_progress(checkpoint, config)
    (checkpoint / "run.json").write_text('{"iteration": 5')
    with pytest.raises(ConfigError, match=r"run\.json is damaged .* older checkpoint"):
        checkpoint_dir.read_progress(checkpoint, config)
    for pointer in (b"iter_0000009", b"\xff\x00", b"", b"..", b"/"):
        (root / "latest").write_bytes(pointer)
        with pytest.raises(ConfigError, match="which is not a checkpoint"):
            checkpoint_dir.latest(root)


def test_old_checkpoints_are_cleared(tmp_path: Path) -> None:
    for name in ("iter_0000002", "iter_9999999", "iter_10000000", "iter_0000009", "notes"):
        (tmp_path / name).mkdir()
    checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_10000000", keep=2)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"iter_9999999", "iter_10000000", "notes"}


def test_the_checkpoint_just_saved_is_never_cleared(tmp_path: Path) -> None:
    """A run that died while it saved step 100 went back to 50 and was stopped after 60."""
    for name in ("iter_0000050", "iter_0000060", "iter_0000100"):
        (tmp_path / name).mkdir()
    checkpoint_dir.clear_old(tmp_path, tmp_path / "iter_0000060", keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"iter_0000060", "iter_0000100"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_query_groups": 4}, "must be a multiple of num_query_groups"),
        ({"hidden_size": 50}, "set head_dim"),
        ({"vocab_size": 0}, "greater than 0"),
        ({"layers": 3}, "Extra inputs"),
    ],
)
def test_impossible_models(change: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ModelConfig.model_validate(STUDENT.model_dump() | change)


def test_padded_vocabulary() -> None:
    assert [STUDENT.padded_vocab_size(tp) for tp in (1, 2, 3)] == [384, 512, 384]
    assert STUDENT.kv_channels == 8
    assert STUDENT.model_copy(update={"head_dim": 16}).kv_channels == 16
