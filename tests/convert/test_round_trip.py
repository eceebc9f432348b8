"""Hugging Face -> Megatron -> Hugging Face: weights bit by bit, logits against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_process import Call
from random_models import MODELS, SIZES, weights_in, write_hugging_face
from safetensors.torch import save_file
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bgkd_megatron.convert.from_hf import convert
from bgkd_megatron.convert.from_hf import main as from_hf
from bgkd_megatron.convert.hf_checkpoint import hugging_face_config, read_config
from bgkd_megatron.convert.to_hf import export
from bgkd_megatron.convert.to_hf import main as to_hf
from bgkd_megatron.convert.verify import hugging_face_logits, megatron_logits
from bgkd_megatron.megatron.model_config import ModelConfig

# float32 sums in another order: 3 layers of them, logits of about 10.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 301, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path, ids: Tensor, in_megatron_process: Call) -> None:
    source, model_dir, exported = tmp_path / "hf", tmp_path / "model", tmp_path / "back"
    write_hugging_face(source, name)

    in_megatron_process(convert, source, model_dir)
    expected = hugging_face_logits(source, ids)
    torch.testing.assert_close(
        in_megatron_process(megatron_logits, model_dir, ids), expected, **TOLERANCE
    )

    in_megatron_process(export, model_dir, exported)
    before, after = weights_in(source), weights_in(exported)
    assert before.keys() == after.keys()
    for key, weight in before.items():
        assert torch.equal(after[key], weight), key
    assert torch.equal(hugging_face_logits(exported, ids), expected)
    assert AutoTokenizer.from_pretrained(exported)("hello") == byte_tokenizer()("hello")
    assert GenerationConfig.from_pretrained(exported).temperature == 0.25


def test_shards_are_read(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama", max_shard_size="100kB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    in_megatron_process(convert, tmp_path / "hf", tmp_path / "model")
    in_megatron_process(export, tmp_path / "model", tmp_path / "back")
    after = weights_in(tmp_path / "back")
    for key, weight in weights_in(tmp_path / "hf").items():
        assert torch.equal(after[key], weight), key


def test_dropped_layers(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    arguments = ["--input", str(tmp_path / "hf"), "--output", str(tmp_path / "model")]
    assert in_megatron_process(from_hf, [*arguments, "--drop-layers", "1"]) == 0
    assert ModelConfig.read(tmp_path / "model").num_layers == 2
    arguments = ["--input", str(tmp_path / "model"), "--output", str(tmp_path / "back")]
    assert in_megatron_process(to_hf, [*arguments, "--dtype", "bfloat16"]) == 0
    before, after = weights_in(tmp_path / "hf"), weights_in(tmp_path / "back")
    for theirs, ours in ((0, 0), (2, 1)):
        key = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(after[key.format(ours)], before[key.format(theirs)].bfloat16())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


def test_weights_too_large_for_the_dtype(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    weights = weights_in(tmp_path / "hf")
    weights["model.norm.weight"][7] = 1e5
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    in_megatron_process(convert, tmp_path / "hf", tmp_path / "model")
    arguments = ["--input", str(tmp_path / "model"), "--output", str(tmp_path / "back")]
    assert in_megatron_process(to_hf, [*arguments, "--dtype", "float16"]) == 1
    assert not (tmp_path / "back").exists()
    assert in_megatron_process(to_hf, [*arguments, "--dtype", "bfloat16"]) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type must be .* got 'gpt2'"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type = 'linear'",
        ),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window = 8"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ],
)
def test_models_that_would_come_out_wrong_are_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama", **change}))
    with pytest.raises(ValueError, match=problem):
        read_config(tmp_path)


def test_old_config_files_are_read(tmp_path: Path) -> None:
    content = {**SIZES, "model_type": "llama", "rope_theta": 1234.0, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path).rope_base == 1234.0


def test_no_architecture_has_both_qwen_features() -> None:
    config = ModelConfig(
        num_layers=1, hidden_size=8, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=8,
        vocab_size=8, max_position_embeddings=8, qk_layernorm=True, qkv_bias=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="both qk_layernorm and qkv_bias"):
        hugging_face_config(config, {})


def test_an_existing_output_is_never_touched(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        in_megatron_process(convert, tmp_path / "hf", tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        in_megatron_process(convert, tmp_path / "hf", tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_tokenizer_from_elsewhere(tmp_path: Path, in_megatron_process: Call) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    byte_tokenizer(chat_template="other").save_pretrained(tmp_path / "other")
    arguments = ["--input", str(tmp_path / "hf"), "--output", str(tmp_path / "model")]
    arguments += ["--tokenizer", str(tmp_path / "other")]
    assert in_megatron_process(from_hf, arguments) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    assert tokenizer.chat_template == "other"


@pytest.mark.parametrize("command", [from_hf, to_hf])
def test_commands_report_mistakes_in_one_line(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--input", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert f"{tmp_path}/none" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="neither"):
        convert(tmp_path / "x.bin", tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert(tmp_path / "y", tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        export(tmp_path, tmp_path / "out")
