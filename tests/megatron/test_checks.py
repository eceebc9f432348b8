"""Every run that cannot work is refused before a model is built, and told what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import STUDENT, load

from bgkd_megatron.megatron.checks import check_run
from bgkd_megatron.megatron.errors import ConfigError


def message(tmp_path: Path, settings: dict[str, Any], *overrides: str, world_size: int = 6) -> str:
    with pytest.raises(ConfigError) as error:
        check_run(load(tmp_path, settings, *overrides), world_size, {})
    return str(error.value)


def test_no_mistake(tmp_path: Path, settings: dict[str, Any]) -> None:
    check_run(load(tmp_path, settings), 6, {})


PIPELINE = ("parallel.pipeline_parallel=2", "parallel.virtual_pipeline=2")


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        ((), 4, "= 3 x 1 x 1 does not divide the 4 processes: start a multiple of 3"),
        (("parallel.tensor_parallel=2",), 2, "student's num_query_groups=3"),
        (("parallel.tensor_parallel=4",), 4, "teacher's num_attention_heads=6"),
        (("parallel.tensor_parallel=5",), 5, "student's ffn_hidden_size=96"),
        (("training.global_batch_size=3",), 6, "must be a multiple of micro_batch_size x data-"),
        (("training.micro_batch_size=3",), 6, "= 3 x 2 = 6"),
        (("parallel.sequence_parallel=true",), 3, "make it a multiple of 3"),
        (
            ("parallel.tensor_parallel=1", "parallel.pipeline_parallel=3"),
            3,
            "2 layers cannot be cut into 3 stages: lower pipeline_parallel",
        ),
        (
            ("parallel.pipeline_parallel=2", "teacher.layers_per_stage=[1,1,1]"),
            6,
            "teacher: layers_per_stage must be 2 numbers",
        ),
        (
            (*PIPELINE, "student.layers_per_stage=[1,1]", "training.global_batch_size=3"),
            6,
            "the 3 microbatches of a step on each rank must be a multiple of",
        ),
        ((*PIPELINE, "teacher.microbatches_ahead=1"), 6, "microbatches_ahead=1 must be a multiple"),
        (
            ("parallel.context_parallel=2", "data.seq_length=30"),
            6,
            "cuts data.seq_length=30 into 4 parts: make it a multiple of 4",
        ),
        (("parallel.expert_parallel=4",), 6, "does not divide the 2 ranks of data and context"),
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


NAME = "a" * 300  # longer than any file system takes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.model_dir={0}/file", "student.model_dir: {0}/file/model.json does not exist"),
        ("teacher.model_dir={0}/torn", "teacher.model_dir: {0}/torn/model.json does not exist"),
        (f"student.model_dir={{0}}/{NAME}", "student.model_dir: [Errno 36] File name too long"),
        ("data.train=[{0}/torn]", "{0}/torn.bin does not exist or is empty"),
        ("data.train=[{0}/file/data]", "{0}/file/data.bin does not exist or is empty"),
        (f"data.train=[{{0}}/{NAME}]", f"{{0}}/{NAME} cannot be read ([Errno 36] File name too"),
        (f"data.valid.x={{0}}/{NAME}", f"{{0}}/{NAME} cannot be read ([Errno 36] File name too"),
    ],
)
def test_folders_for_files_and_the_reverse(
    tmp_path: Path, settings: dict[str, Any], override: str, expected: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "torn" / "model.json").mkdir(parents=True)
    (tmp_path / "torn.bin").mkdir()
    assert expected.format(tmp_path) in message(tmp_path, settings, override.format(tmp_path))


def test_a_model_whose_parts_are_of_the_wrong_kind(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    weights = tmp_path / "student" / "weights"
    (weights / "metadata.json").unlink()
    (weights / "metadata.json").mkdir()
    assert "not a complete checkpoint" in message(tmp_path, settings)
    (weights / "metadata.json").rmdir()
    weights.rmdir()
    weights.write_text("")
    assert "not a complete checkpoint" in message(tmp_path, settings)


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
    for content in ("{", "[]", '{"model": {"vocab": [1]}}', "[" * 100_000):
        path.write_text(content)
        assert "a tokenizer.json of student or teacher cannot" in message(tmp_path, settings)
    # Unigram models list their tokens; here they are those of the student.
    tokenizer = {"model": {"vocab": [["a", 0.0], ["b", -1.0], ["<end>", 0.0]]}}
    path.write_text(json.dumps(tokenizer))
    check_run(load(tmp_path, settings), 6, {})
    path.unlink()
    check_run(load(tmp_path, settings), 6, {})


def test_dataset_of_another_tokenizer(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "data.json").write_text('{"vocab_size": 300, "loss_tokens": 1}')
    check_run(load(tmp_path, settings), 6, {})
    (tmp_path / "data.json").write_text('{"vocab_size": 301, "loss_tokens": 1}')
    assert "made with a tokenizer of 301 tokens, the student has 300" in message(tmp_path, settings)
    (tmp_path / "data.json").write_text('{"vocab_size": 300, "loss_tokens": 0}')
    assert "no token of" in message(tmp_path, settings)
    endless = '{"vocab_size": Infinity, "loss_tokens": 1}'
    for content in ('{"vocab_size": 3', "[]", endless, "[" * 100_000):
        (tmp_path / "data.json").write_text(content)
        assert "prepare the dataset again" in message(tmp_path, settings)


def test_folders_that_cannot_be_written(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(tmp_path, settings)
    (tmp_path / "file").write_text("")
    folders = {"logging.dir": tmp_path / "file", "--output": tmp_path / "file" / "below"}
    with pytest.raises(ConfigError) as error:
        check_run(config, 6, folders)
    for name, folder in folders.items():
        assert f"{name}: cannot write to {folder}" in str(error.value)


def test_only_the_given_folders_are_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = load(tmp_path, settings)
    check_run(config, 6, {"logging.dir": config.logging.dir})
    assert config.logging.dir.is_dir()
    assert not config.checkpoint.dir.exists()


def test_tensorboard_is_missing(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorboard" in message(tmp_path, settings)
    check_run(load(tmp_path, settings, "logging.tensorboard=false"), 6, {})
