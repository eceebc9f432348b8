"""Every mistake in a configuration file is named, with the key that it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from run_files import load

from bgkd_megatron.megatron.config_file import load_config
from bgkd_megatron.megatron.errors import ConfigError


def message(tmp_path: Path, settings: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, settings, *overrides)
    return str(error.value)


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
        ("training.steps=[", "the value is not valid YAML: expected the node content, but found"),
        ("optimizer={lr: 1, lr: 2}", "not valid YAML: the key 'lr' is given twice (line 1, col"),
        ("training.steps=0x_", "not valid YAML: invalid literal for int() with base 16"),
        ("training.steps=!!int ''", "not valid YAML: string index out of range"),
        ("training.steps=" + "9" * 5000, "not valid YAML: Exceeds the limit (4300 digits)"),
        ("data.train=" + "[" * 5000, "not valid YAML: brackets or blocks are nested too deeply"),
        (f"training.steps={10**30}", "training.steps: Input should be less than 2147483648, got"),
        (f"evaluation.batches={2**31}", "evaluation.batches: Input should be less than 2147483648"),
        (f"optimizer.lr={10**400}", "optimizer.lr: Input should be a valid number"),
        (
            f"training={{steps: {2**31 - 1}, global_batch_size: {2**31 - 1}}}",
            f"data.seq_length = {(2**31 - 1) ** 2 * 32} tokens must be below {2**63}",
        ),
        ("training.steps=true", "training.steps"),
        ("optimizer.lr=true", "optimizer.lr"),
        ("objective.soft_weight=true", "objective.soft_weight"),
        ("checkpoint.dir=''", "checkpoint.dir: Input is not a valid path"),
        ('checkpoint.dir="a\\0"', "checkpoint.dir: must not hold a null character"),
        ("data.train=['']", "data.train.0: String should have at least 1 character, got ''"),
        ("data.valid={a: ''}", "data.valid.a: String should have at least 1 character, got ''"),
        ("student.architecture.num_layers=true", "num_layers: must be a number, got the boolean"),
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
    assert load(tmp_path, settings, *hard_only).teacher is None


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="must hold sections"):
        load_config(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load_config(tmp_path)
    for content, problem in (
        (b"a: [", r"expected the node content, .* \(line 1, column 5\)"),
        (b"\xff\x00", "can't decode byte"),
        (b"a: 1\nb: {c: 1, c: 2}", r"the key 'c' is given twice \(line 2, column 11\)"),
        (b"[" * 5000, "nested too deeply"),
        (b"- " * 5000, "nested too deeply"),
        (b"a: 2026-13-45", "month must be in 1..12"),
        (b"a: \0", "unacceptable character #x0000"),
    ):
        (tmp_path / "torn.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=f"torn.yaml is not valid YAML: .*{problem}") as error:
            load_config(tmp_path / "torn.yaml")
        assert "\n" not in str(error.value)


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
